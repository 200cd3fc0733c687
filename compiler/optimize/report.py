"""What was done to one graph of a model, as data and as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from compiler.analysis.layers import LayerMetadata, layer_index
from compiler.analysis.statistics import CountedCollective, Statistics
from compiler.check import Report, Verdict
from compiler.cost.units import PS_PER_MS
from compiler.ir.comm_plan import CommPlan
from compiler.ir.remark import Remark
from compiler.optimize.ranged import Ranged, is_open

OUTSIDE = "outside layers"
"""Kind of the collectives that belong to no layer: embedding, head."""


@dataclass(frozen=True)
class ModelReport:
    """What was done to one graph of a model.

    Attributes:
        plan: what was decided.
        check: the checker's report; None if verification was switched off or not needed.
        remarks: what was done, what was not and why, of capture and of all passes.
        before: collectives as the author wrote them.
        after: collectives of the graph that runs.
        layers: metadata per decoder layer.
        assumed: what was taken to be the same on all ranks without having been compared, and why.
        seconds: wall time per stage.
        ranged: the plans for all numbers of tokens, of which the above is the one for the call
            that was captured; None where there is but one.
        tokens: what the call that was captured had, and payloads are counted at; None where no
            one size counts them.
    """

    plan: CommPlan
    check: Report | None
    remarks: tuple[Remark, ...]
    before: Statistics
    after: Statistics
    layers: tuple[LayerMetadata, ...] = ()
    assumed: tuple[str, ...] = ()
    seconds: Mapping[str, float] | None = None
    ranged: Ranged | None = None
    tokens: int | None = None

    @property
    def verdict(self) -> Verdict:
        """The checker's verdict; UNPROVED where verification was switched off."""
        return self.check.verdict if self.check else Verdict.UNPROVED

    def by_layer_kind(self) -> dict[str, tuple[int, Counter[str], Counter[str]]]:
        """Kind of layer -> how many there are, their collectives before, and after."""
        kinds = {layer.index: layer.kind for layer in self.layers}
        counts: dict[str, tuple[int, Counter[str], Counter[str]]] = {
            OUTSIDE: (0, Counter(), Counter())
        }
        for kind in dict.fromkeys(kinds.values()):
            counts[kind] = (list(kinds.values()).count(kind), Counter(), Counter())
        for collective in self.before.collectives:
            counts[_kind(collective, kinds)][1][str(collective.kind)] += 1
        for collective in self.after.collectives:
            counts[_kind(collective, kinds)][2][str(collective.kind)] += 1
        return counts

    def __str__(self) -> str:
        at = "" if self.tokens is None else f" at {self.tokens} tokens"
        lines = [
            f"{self.before.all_reduces} all_reduces before, {self.after.all_reduces} after; "
            f"payload {self.before.payload_bytes} bytes before, {self.after.payload_bytes} after"
            f"{at}; verdict {self.verdict}"
        ]
        for kind, (count, before, after) in self.by_layer_kind().items():
            if before or after:
                lines.append(f"  {count or ''} {kind}: {dict(before)} before, {dict(after)} after")
        lines += _range_lines(self.ranged) if self.ranged else []
        reasons = Counter((remark.kind, remark.reason) for remark in self.remarks)
        lines += [f"  {kind}: {reason} ({n} times)" for (kind, reason), n in reasons.items()]
        return "\n".join(lines)


def _range_lines(ranged: Ranged) -> list[str]:
    """A line per range of token counts."""
    lines, table = [], ranged.table
    for i, token_range in enumerate(table.ranges()):
        result = ranged.results[token_range.plan]
        last = "" if is_open(token_range.last, table.ranks) else token_range.last
        which = ""
        if table.ranks > 1:
            no = "" if i < len(table.even) else "no "
            which = f", {no}multiples of {table.ranks}"
        line = f"  {token_range.first}..{last} tokens{which}: {dict(result.after.counts)}"
        if ranged.totals:
            at = ranged.totals[i]
            line += (
                f"; at {token_range.first} tokens {at.planned / PS_PER_MS:.2f} ms predicted, "
                f"{at.merged / PS_PER_MS:.2f} merged, {at.as_written / PS_PER_MS:.2f} as written"
            )
        lines.append(f"{line}; verdict {result.verdict}")
    return lines


def _kind(collective: CountedCollective, kinds: Mapping[int, str]) -> str:
    index = layer_index(collective.layer)
    return kinds.get(index, OUTSIDE) if index is not None else OUTSIDE
