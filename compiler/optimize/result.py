"""What became of a graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import fx, nn

from compiler.analysis.statistics import Statistics, statistics
from compiler.check import Report, Verdict
from compiler.ir.comm_plan import CommPlan
from compiler.ir.graph import SpmdGraph
from compiler.ir.remark import Remark
from compiler.pipeline import PassRecord
from compiler.plan.spending import Totals
from compiler.plan.token_ranges import TokenTable
from compiler.runtime.process_groups import bound
from compiler.runtime.rank_agreement import ranks_of


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
        tokens: the count that the properties tell of; None: the sizes the graph was made with.
        before: collectives of the source, at ``tokens``.
        seconds: wall time per stage: canonicalize, plan, rewrite, check.
    """

    table: TokenTable[RangeResult]
    symbol: str | None
    tokens: int | None
    before: Statistics
    seconds: Mapping[str, float]

    @cached_property
    def after(self) -> Statistics:
        """Collectives of the result, at ``tokens``."""
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
    def remarks(self) -> tuple[Remark, ...]:
        """What was done, what was not and why."""
        return self.at_tokens.remarks

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
        has rank constants; ``bind`` makes it this rank's.
        """
        return _as_the_source(self.spmd)

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
        module = bound(self.spmd, groups or {}, ranks_of(group))
        return _as_the_source(self.spmd.with_graph(module.graph, {}))


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
