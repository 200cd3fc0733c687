"""What was done to one graph of a model, as data and as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from compiler.analysis.layers import LayerMetadata, layer_index
from compiler.analysis.statistics import CountedCollective, Statistics
from compiler.check import Report, Verdict
from compiler.cost.units import PS_PER_MS
from compiler.ir.comm_plan import CommPlan
from compiler.ir.remark import Remark
from compiler.optimize.result import OptimizationResult, RangeResult
from compiler.plan.token_ranges import TokenTable

OUTSIDE = "outside layers"
"""Kind of the collectives that belong to no layer: embedding, head."""


@dataclass(frozen=True)
class ModelReport:
    """What was done to one graph of a model.

    Attributes:
        result: the optimizer's, for every number of tokens; None where nothing was to be done.
        remarks: what was done, what was not and why, of capture and of all passes.
        layers: metadata per decoder layer.
        assumed: what was taken to be the same on all ranks without having been compared, and why.
        seconds: wall time per stage.
    """

    result: OptimizationResult | None
    remarks: tuple[Remark, ...]
    layers: tuple[LayerMetadata, ...] = ()
    assumed: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def plan(self) -> CommPlan:
        """What was decided for the call that was captured."""
        return self.result.plan if self.result else CommPlan("off", None)

    @property
    def check(self) -> Report | None:
        """The checker's report; None if verification was switched off or not needed."""
        return self.result.report if self.result else None

    @property
    def verdict(self) -> Verdict:
        """The checker's verdict; UNPROVED where verification was switched off."""
        return self.result.verdict if self.result else Verdict.UNPROVED

    @property
    def before(self) -> Statistics:
        """Collectives as the author wrote them."""
        return self.result.before if self.result else Statistics(())

    @property
    def after(self) -> Statistics:
        """Collectives of the graph that runs."""
        return self.result.after if self.result else Statistics(())

    @property
    def tokens(self) -> int | None:
        """What the captured call had, and payloads are counted at; None if no one size counts."""
        return self.result.tokens if self.result else None

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
        lines += _range_lines(self.result.table) if self.result else []
        reasons = Counter((remark.kind, remark.reason) for remark in self.remarks)
        lines += [f"  {kind}: {reason} ({n} times)" for (kind, reason), n in reasons.items()]
        return "\n".join(lines)


def _range_lines(table: TokenTable[RangeResult]) -> Iterator[str]:
    """A line per range of token counts whose times are predicted."""
    for i, token_range in enumerate(table.ranges()):
        result = token_range.plan
        if (at := result.totals) is None:
            continue
        count = at.tokens or token_range.first
        last = "" if table.is_open(token_range) else token_range.last
        which = ""
        if table.ranks > 1:
            no = "" if i < len(table.even) else "no "
            which = f", {no}multiples of {table.ranks}"
        yield (
            f"  {token_range.first}..{last} tokens{which}: {dict(result.after.counts)}; "
            f"at {count} tokens {at.planned / PS_PER_MS:.2f} ms predicted, "
            f"{at.merged / PS_PER_MS:.2f} merged, {at.as_written / PS_PER_MS:.2f} as written; "
            f"verdict {result.verdict}"
        )


def _kind(collective: CountedCollective, kinds: Mapping[int, str]) -> str:
    index = layer_index(collective.layer)
    return kinds.get(index, OUTSIDE) if index is not None else OUTSIDE
