"""What became of a graph, as data and as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import fx, nn

from compiler.analysis.layers import LayerMetadata, layer_index
from compiler.analysis.statistics import CountedCollective, Statistics, statistics
from compiler.check import Report, Verdict, check
from compiler.cost.units import PS_PER_MS
from compiler.errors import VerificationError
from compiler.ir.comm_plan import CommPlan
from compiler.ir.dialects import read, write
from compiler.ir.graph import SpmdGraph
from compiler.ir.remark import Remark
from compiler.pipeline import PassRecord
from compiler.plan.spending import Totals
from compiler.plan.token_ranges import TokenTable
from compiler.runtime.group_exchange import ranks_of
from compiler.runtime.process_groups import bound

OUTSIDE = "outside layers"
"""Kind of the collectives that belong to no layer: embedding, head."""


@dataclass(frozen=True, eq=False)
class RangeResult:
    """What became of a graph for one range of token counts.

    Attributes:
        plan: what was decided; payloads are those of the least count of the range, or of the count
            that it was made for.
        report: the checker's report; None if verification was switched off.
        remarks: what was done, what was not and why.
        after: collectives of the result, at that count.
        spmd: the rewritten graph with its mesh and placements; ranges of one plan share it.
        records: the passes that ran.
        totals: what that count takes; None for one plan, and without a machine.
    """

    plan: CommPlan
    report: Report | None
    remarks: tuple[Remark, ...]
    after: Statistics
    spmd: SpmdGraph
    records: tuple[PassRecord, ...] = field(repr=False)
    totals: Totals | None

    @property
    def verdict(self) -> Verdict:
        """The checker's verdict; UNPROVED where verification was switched off."""
        return self.report.verdict if self.report else Verdict.UNPROVED


@dataclass(frozen=True)
class OptimizationResult:
    """What became of a graph, for every number of tokens.

    Attributes:
        table: number of tokens -> what runs; one range where one plan serves for all.
        symbol: the size that counts tokens; None if there is no one such.
        tokens: the count that the properties tell of: that of the call that was captured; None
            for the sizes the graph was made with.
        before: collectives as the author wrote them, at ``tokens``.
        remarks: what was done, what was not and why, of capture and of all passes.
        seconds: wall time per stage.
        layers: metadata per decoder layer.
    """

    table: TokenTable[RangeResult]
    symbol: str | None
    tokens: int | None
    before: Statistics
    remarks: tuple[Remark, ...]
    seconds: Mapping[str, float]
    layers: tuple[LayerMetadata, ...] = ()

    @cached_property
    def after(self) -> Statistics:
        """Collectives of the graph that runs, at ``tokens``."""
        return statistics(self.spmd.graph, self.tokens)

    @property
    def ranges(self) -> tuple[RangeResult, ...]:
        """One per range, in the order of ``table.ranges()``."""
        return tuple(tokens.plan for tokens in self.table.ranges())

    @cached_property
    def at_tokens(self) -> RangeResult:
        """The result for ``tokens``, which the following tell of."""
        return self.table.plan(self.tokens or 1)

    @property
    def plan(self) -> CommPlan:
        """What was decided."""
        return self.at_tokens.plan

    @property
    def report(self) -> Report | None:
        """The checker's report; None if verification was switched off."""
        return self.at_tokens.report

    @property
    def verdict(self) -> Verdict:
        """The checker's verdict; UNPROVED where verification was switched off."""
        return self.at_tokens.verdict

    @property
    def spmd(self) -> SpmdGraph:
        """The rewritten graph with its mesh and placements."""
        return self.at_tokens.spmd

    @property
    def records(self) -> tuple[PassRecord, ...]:
        """The passes that ran."""
        return self.at_tokens.records

    @property
    def digests(self) -> str:
        """Ranges and the plans of them, as text that is equal for equal ones."""
        return str(self.table.map(lambda tokens: tokens.plan.plan.digest))

    def greatest(
        self, graph: SpmdGraph, sizes: Mapping[str, tuple[int, int | None]]
    ) -> dict[str, int]:
        """Size symbol -> the greatest value for which a graph runs; those without one left out.

        Args:
            graph: that of a range.
            sizes: size symbol -> least and greatest value.
        """
        greatest = {name: last for name, (_, last) in sizes.items() if last is not None}
        ranges = (tokens for tokens in self.table.ranges() if tokens.plan.spmd is graph)
        tokens = max(ranges, key=lambda tokens: tokens.last)
        if self.symbol is not None and not self.table.is_open(tokens):
            greatest[self.symbol] = min(tokens.last, greatest.get(self.symbol, tokens.last))
        return greatest

    @cached_property
    def graph_module(self) -> fx.GraphModule:
        """The rewritten graph, a new module; attributes are shared with the source.

        It runs in process groups of the names that it gives, with the numbers of one rank where it
        has rank constants; ``bind`` makes it this rank's. Where the source calls ops of a dialect,
        so does it.
        """
        return _as_the_source(in_dialect(self.spmd))

    def bind(self, groups: Mapping[str, Any] | None = None, *, group: Any = None) -> fx.GraphModule:
        """``graph_module`` with the groups and numbers of this rank, called as it is.

        All ranks call it together.

        Args:
            groups: axis, or group name of the mesh -> process group; those left out are the
                groups of that name, or are made.
            group: process group of all ranks of the mesh, in its order; default: all ranks of the
                job.

        Raises:
            MeshError: no process group, a name that does not resolve, or a process group of other
                ranks than the mesh says.
        """
        written = in_dialect(self.spmd)
        module = bound(written, groups or {}, ranks_of(group))
        return _as_the_source(written.with_graph(module.graph, {}))


@dataclass(frozen=True)
class ModelReport(OptimizationResult):
    """What was done to one graph of a model.

    Attributes:
        assumed: what was taken to be the same on all ranks without having been compared, and why.
    """

    assumed: tuple[str, ...] = ()

    @property
    def check(self) -> Report | None:
        """The checker's report; None if verification was switched off or not needed."""
        return self.report

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
        lines += _range_lines(self.table)
        reasons = Counter((remark.kind, remark.reason) for remark in self.remarks)
        lines += [f"  {kind}: {reason} ({n} times)" for (kind, reason), n in reasons.items()]
        return "\n".join(lines)


def in_dialect(graph: SpmdGraph) -> SpmdGraph:
    """Return a graph in the dialects of its source; it is read back, and compared.

    Raises:
        VerificationError: what was written is not shown to be the graph.
    """
    if not graph.readings:
        return graph

    def ranks_of(name: str) -> int:
        return graph.mesh.group(name).axis_size

    written = graph.with_graph(write(graph.graph, graph.readings, ranks_of), {})
    axes = list(graph.mesh.axes)
    again = read(written.graph, ranks_of, axes[0] if len(axes) == 1 else "")
    report = check(graph, written.with_graph(again, {}))
    if not report.verdict.runs:
        raise VerificationError(
            "the graph cannot be written in the dialect of its source",
            found=f"{report.verdict}: {report.explanation}",
            remedy="report this; spmd.module is the graph in functional collectives",
        )
    return written


def _as_the_source(graph: SpmdGraph) -> fx.GraphModule:
    """A GraphModule with the source's parameters, buffers and calling convention."""
    root, like_source = graph.root, graph.module
    if isinstance(root, fx.GraphModule):
        if type(root.graph._codegen) is not fx.graph.CodeGen:  # arguments are trees
            like_source = graph.own_copy().module
            like_source.graph.set_codegen(root.graph._codegen)
            like_source.recompile()
        like_source.meta.update(root.meta)
    for path, tensor in root.state_dict(keep_vars=True).items():
        owner: nn.Module = like_source
        *modules, name = path.split(".")
        for module in modules:
            if not hasattr(owner, module):
                owner.add_module(module, nn.Module())
            owner = owner.get_submodule(module)
        if hasattr(owner, name):
            continue
        if isinstance(tensor, nn.Parameter):
            owner.register_parameter(name, tensor)
        else:
            owner.register_buffer(name, tensor)
    return like_source


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
