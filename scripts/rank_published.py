"""Predicted tokens per second beside those published, and what lies between them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

SOURCE = "sglang #22773: Step-3.5-Flash in fp8, TP 8, EP 4, prompts of 8,192, 8 H200"
TOKENS = 8192
BEFORE, AFTER = 46_000, 56_000
"""Tokens/s with three all_reduces in a sparse layer, and with one where there were two branches."""


def beside_published(rows: list[dict[str, Any]], machine: str) -> Iterator[str]:
    """Lines about the prefill of as many tokens as were published; none where it was not run."""
    forms = {r["form"]: r for r in rows if not r["decode"] and r["tokens"] == TOKENS}
    if not forms:
        return
    ours = {form: r["predicted"][machine] for form, r in forms.items()}
    first = ours["as written"]
    shown = " -> ".join(f"{p['tokens_s']:,.0f} {form}" for form, p in ours.items())
    yield f"PUBLISHED {BEFORE:,} -> {AFTER:,} tokens/s, {AFTER / BEFORE - 1:+.1%} ({SOURCE})"
    yield f"PREDICTED {shown}"
    own = (first["forward_us"] - first["sent_us"]) / 1e3
    before, after = TOKENS / BEFORE * 1e3, TOKENS / AFTER * 1e3
    sent = first["sent_us"] / 1e3
    yield (
        f"  Compute: {own:.1f} ms here; published {before:.1f} ms for all, which leaves "
        f"{before - sent:.1f} beside {sent:.1f} of communication as written."
    )
    merged = ours["optimized, merge"]
    less = (first["sent_us"] - merged["sent_us"]) / 1e3
    count = len(forms["as written"]["collectives"]) - len(forms["optimized, merge"]["collectives"])
    yield (
        f"  Merging saves {less:.2f} ms of communication: {less / (before - less):.1%} of the "
        f"published forward, {less / (before - after):.0%} of the {before - after:.1f} ms saved. "
        f"For all of it each of the {count} all_reduces would have to take "
        f"{(before - after) / count * 1e3:.0f} us, and is priced at {less / count * 1e3:.0f}."
    )
    if "planned" in ours:
        more = (merged["forward_us"] - ours["planned"]["forward_us"]) / 1e3
        yield f"  Sharing rows saves {more:.2f} ms more, of the compute measured here."
