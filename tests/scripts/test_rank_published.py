"""What is said beside published figures follows from the rows."""

from typing import Any

from scripts.rank_published import beside_published


def row(form: str, sent_us: float, collectives: int, decode: bool = False) -> dict[str, Any]:
    forward_us = 200_000 + sent_us
    predicted = {"sent_us": sent_us, "forward_us": forward_us, "tokens_s": 8192e6 / forward_us}
    return {
        "form": form, "tokens": 8192, "decode": decode, "collectives": [0] * collectives,
        "predicted": {"h200x8": predicted},
    }  # fmt: skip


def test_lines() -> None:
    rows = [row("as written", 42_000, 133), row("optimized, merge", 28_000, 91)]
    published, predicted, compute, merging = beside_published(rows, "h200x8")
    assert "46,000 -> 56,000 tokens/s, +21.7%" in published
    assert predicted == "PREDICTED 33,851 as written -> 35,930 optimized, merge"
    assert "200.0 ms here; published 178.1 ms for all, which leaves 136.1 beside 42.0" in compute
    assert "saves 14.00 ms" in merging
    assert "44% of the 31.8 ms saved" in merging
    assert "the 42 all_reduces would have to take 757 us, and is priced at 333" in merging


def test_nothing_is_said_of_other_calls() -> None:
    assert not list(beside_published([row("as written", 1, 1, decode=True)], "h200x8"))
