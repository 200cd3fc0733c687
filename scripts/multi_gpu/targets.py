"""What had to be shown: met or missed, and what the figures say about the cause."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scripts.multi_gpu.forms import BY_HAND, PLANNED, WRITTEN
from scripts.multi_gpu.model import PREFILL
from scripts.multi_gpu.predictions import busy_us, name_of

GAIN, GAIN_TOKENS = 1.21, 8192
WITHIN = 0.10
SHOWN = 3
Row = dict[str, Any]
Key = tuple[str, str, int, str]


@dataclass(frozen=True)
class Target:
    """Something that had to be shown.

    Attributes:
        what: what it is.
        met: whether it is met; None where nothing was measured.
        found: the figures, the worst first.
        cause: what else was measured says this about the worst; empty where it is met.
    """

    what: str
    met: bool | None
    found: str
    cause: str = ""


def targets(model: Sequence[Row], rows: Sequence[Row]) -> list[Target]:
    """Every target, judged.

    Args:
        model: rows of the model part.
        rows: predictions.
    """
    times: dict[Key, Row] = {(r["experts"], r["call"], r["tokens"], r["form"]): r for r in model}
    planned = {key[:3]: row["ratio"] for key, row in times.items() if key[3] == PLANNED}
    gains = {key: value for key, value in planned.items() if key[1:] == (PREFILL, GAIN_TOKENS)}
    by_hand = {key: value / times[(*key, BY_HAND)]["ratio"] for key, value in planned.items()}
    outcomes = [
        at_least(
            GAIN, f"planned >= {GAIN} x as written, prefill of {GAIN_TOKENS:,} tokens", gains,
            lambda key: gain_missed(times[(*key, WRITTEN)], times[(*key, PLANNED)]),
        ),
        at_least(
            1, "planned >= merged by hand", by_hand,
            lambda key: slower(times[(*key, BY_HAND)], times[(*key, PLANNED)]),
        ),
    ]  # fmt: skip
    by_part = {part: {r["what"]: r for r in rows if r["part"] == part} for part in CAUSES}
    named = {name_of(row): row for row in model}
    for part, cause in CAUSES.items():
        outcomes.append(
            within(part, by_part[part], lambda r, of=cause: of(r, named, by_part))  # type: ignore[misc]
        )
    return outcomes


def at_least(
    limit: float,
    what: str,
    ratios: Mapping[tuple[str, str, int], float],
    cause: Callable[[Any], str],
) -> Target:
    """Judges ratios, by experts, kind of call and tokens, that may not be below ``limit``."""
    ordered = sorted(ratios, key=ratios.__getitem__)
    missed = [key for key in ordered if ratios[key] < limit]
    texts = [f"{' '.join(map(str, key))} {ratios[key]:.3f}" for key in ordered]
    return judged(what, texts, len(missed), cause(missed[0]) if missed else "")


def within(part: str, rows: Mapping[str, Row], cause: Callable[[Row], str]) -> Target:
    """Judges the errors of a part's predictions."""
    measured = [row for row in rows.values() if row["error"] is not None]
    ordered = sorted(measured, key=lambda row: -abs(row["error"]))
    missed = [row for row in ordered if abs(row["error"]) > WITHIN]
    texts = [f"{row['what']} {row['error']:+.1%}" for row in ordered]
    why = cause(missed[0]) if missed else ""
    return judged(f"predictions within {WITHIN:.0%}: {part}", texts, len(missed), why)


def judged(what: str, texts: Sequence[str], missed: int, cause: str) -> Target:
    """A target all of whose figures have to meet it. ``texts``: figures, the worst first."""
    if not texts:
        return Target(what, None, "not measured")
    listed = "; ".join(texts[: min(missed, SHOWN) or SHOWN])
    counted = f"{len(texts) - missed} of {len(texts)} met; worst: {listed}"
    return Target(what, not missed, counted, cause)


def gain_missed(written: Row, planned: Row) -> str:
    """Whether communication leaves room for the gain, and if so what planning saved of it."""
    share = written["communication_share"]
    bound = 1 / (1 - share) if share < 1 else float("inf")
    if bound < GAIN:
        return f"communication is {share:.1%} as written: free of it, {bound:.3f} at most"
    return slower(written, planned)


def slower(other: Row, planned: Row) -> str:
    """Where the planned form gains and loses time against another."""
    sent = planned["communication_us"] - other["communication_us"]
    computed = busy_us(planned) - busy_us(other) - sent
    spread = max(planned["rounds_us"]) / min(planned["rounds_us"]) - 1
    return (
        f"planned against {other['form']}: communication {sent:+,.0f} us, computation "
        f"{computed:+,.0f} us; its rounds lie {spread:.0%} apart"
    )


Rows = Mapping[str, Row]
Cause = Callable[[Row, Rows, Mapping[str, Rows]], str]


def curve(_: Row, __: Rows, ___: Mapping[str, Rows]) -> str:
    """Of links: the curve alone can be wrong."""
    return "the curve of the machine file does not follow these times: noise, or other links"


def kernel(row: Row, _: Rows, __: Mapping[str, Rows]) -> str:
    """Of kernels: a curve, or what is taken for an addition and a norm."""
    if row["what"].startswith("unfused"):
        return "the all_reduce's curve, or the memory bandwidth taken for addition and norm"
    return "the fused kernel's curve, or its collectives' where the machine has none"


def waiting(row: Row, model: Rows, _: Mapping[str, Rows]) -> str:
    """Of communication: ranks that wait for others inside a collective."""
    by_rank = model[row["what"]]["communication_by_rank_us"]
    return (
        f"ranks are {min(by_rank):,.0f} to {max(by_rank):,.0f} us in collectives, waiting for "
        f"others included; predicted {row['predicted_us']:,.0f} us, without waiting"
    )


def gaps(row: Row, model: Rows, by_part: Mapping[str, Rows]) -> str:
    """Of forwards: communication, or time between kernels."""
    sent = by_part["communication"][row["what"]]
    of_sent = sent["predicted_us"] - sent["measured_us"]
    one = model[row["what"]]
    idle = busy_us(one) - one["time_us"]
    return f"by communication {of_sent:+,.0f} us, by profiled less timed call {idle:+,.0f} us"


CAUSES: Mapping[str, Cause] = {
    "links": curve, "kernels": kernel, "communication": waiting, "forward": gaps
}  # fmt: skip
