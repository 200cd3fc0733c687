"""Send rows to the ranks that need them, where the plan says so, instead of gathering all.

Before    %2: f32[s0, 8] {tp: R} = comm.all_gather(%0) {axis = tp}
          %3: f32[s0, 8] {tp: P} = …(%2, …)    // zero in rows of which the rank owns no id
          %4: f32[s0 / 4, 8] {tp: S(0)} = comm.reduce_scatter(%3) {axis = tp, op = sum}
After     %2: (…) = commplan.dispatch_rows([%0, %1], %1, [0, 4, …], [4, 8, …], %s0, "tp")
          %3: f32[s0, 8] = …(%2[0], …)
          %4: f32[s0 / 4, 8] = commplan.combine_rows(%3, %2[2], %2[3], %s, "tp")

Law       rows alike and zero where nothing is owned (``compiler.check.row_ownership``): what other
          rows give is not missed.
Exact     bit by bit but for the order of additions.
Requires  sums over ranks of what is computed from rows that all ranks hold. Others are left, each
          with a remark that says why.
Ensures   sizes that count rows, in what is computed from rows sent, are read off these rows. What
          nothing reads any more is left.
Saves     sending rows to ranks that own none of their ids.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import fx

from compiler.analysis.expert_regions import ExpertRegion, region
from compiler.analysis.row_shards import SIZE_READ
from compiler.check.row_ownership import Owners, owners
from compiler.ir import access
from compiler.ir.collectives import Collective, Kind, collective
from compiler.ir.dispatch import COMBINE_ROWS, DISPATCH_ROWS
from compiler.ir.graph import SpmdGraph
from compiler.ir.graph_copy import GraphCopy
from compiler.ir.remark import PassResult, Remark, RemarkKind
from compiler.ir.row_ops import ALL_SLICE, PAD_ROWS, resized
from compiler.ir.rules.meaning import size_key
from compiler.ir.scale_rows import state_sizes

aten = torch.ops.aten


@dataclass(frozen=True)
class DispatchRows:
    """Sends the rows of some sums.

    Attributes:
        sums: results of reduce_scatters, as the plan chose them (``SpmdGraph.dispatched``).
    """

    name: ClassVar[str] = "dispatch-rows"
    sums: frozenset[fx.Node]

    def apply(self, graph: SpmdGraph) -> PassResult:
        """The graph with rows sent."""
        matches, remarks = dict[fx.Node, Match](), list[Remark]()
        for node in filter(self.sums.__contains__, graph.graph.nodes):
            match = _match(graph, node)
            kind, why = RemarkKind.PASSED, "rows are sent to the ranks that need them"
            if isinstance(match, Match):
                matches[node] = match
            else:
                kind, why = RemarkKind.MISSED, f"rows are gathered, not sent: {match}"
            remarks.append(Remark(kind, f"%{node.name}", why, access.layer_path(node)))
        target = _Writer(graph, matches).written() if matches else graph
        return PassResult(target, tuple(remarks), changed=bool(matches))


@dataclass(frozen=True)
class Match:
    """A sum, what computes its terms, and who needs which rows of that."""

    reduction: Collective
    region: ExpertRegion
    owners: Owners


def _match(graph: SpmdGraph, node: fx.Node) -> Match | str:
    reduction = collective(node)
    if reduction is None or (reduction.kind, reduction.op) != (Kind.REDUCE_SCATTER, "sum"):
        return "it is not a sum over ranks that each holds a share of"
    groups, terms = graph.mesh.group(reduction.group), reduction.operand
    if terms.target is PAD_ROWS:
        (terms,) = access.operands(terms)
    inner = region(graph, terms, groups)
    if inner is None:
        return "what it adds up is not computed from rows that all ranks hold"
    shown = owners(graph, groups, inner.inputs, inner.nodes)
    return shown if isinstance(shown, str) else Match(reduction, inner, shown)


@dataclass
class _Writer:
    """Writes the graph with rows sent."""

    graph: SpmdGraph
    matches: Mapping[fx.Node, Match]
    copy: GraphCopy = field(default_factory=GraphCopy)

    def written(self) -> SpmdGraph:
        """The target."""
        for node in self.graph.graph.nodes:
            if node in self.matches:
                self.copy.values[node] = self._exchange(node, self.matches[node])
            else:
                self.copy.add(node)
        return self.graph.with_graph(self.copy.target, self.copy.origins)

    def _exchange(self, node: fx.Node, match: Match) -> fx.Node:
        """Writes rows sent, what is computed from them, and its sum, which it returns."""
        group, who, inputs = match.reduction.group, match.owners, match.region.inputs
        ranks, rows = len(who.first), access.shape(inputs[0])[0]
        values, shares, total = self.copy.values, list[fx.Node](), None
        for x in inputs:
            share, end = _gathered(x, group) or (None, None)
            if share is None:
                own = resized(access.tensor(x), 0, access.shape(node)[0])
                shares.append(self._call(x, ALL_SLICE, own, values[x], 0, ranks, group))
                total = total or self._size(values[x])
            else:
                shares.append(values[share])
                total = total or (end and values[end])
        ids = shares[inputs.index(who.ids)]
        count = self._size(ids)
        total = total or self._call(node, operator.mul, rows, count, ranks)
        gives = [resized(access.tensor(x), 0, rows) for x in shares]
        gives.append(access.tensor(ids).new_empty([rows], dtype=torch.int64))
        gives.append(torch.empty([2, ranks], dtype=torch.int64))
        arguments = shares, ids, [*who.first], [*who.end], total, group
        sent = self._call(node, DISPATCH_ROWS, gives, *arguments)
        parts = [self._call(node, operator.getitem, x, sent, i) for i, x in enumerate(gives)]
        partial = self._on_rows(match.region, parts)
        back = partial, *parts[-2:], count, group
        return self._call(node, COMBINE_ROWS, access.tensor(node), *back)

    def _on_rows(self, inner: ExpertRegion, received: Sequence[fx.Node]) -> fx.Node:
        """Writes a region on rows received; numbers of rows are read off these."""
        values = dict(zip(inner.inputs, received, strict=False))
        rows = access.shape(inner.inputs[0])[0]

        def read(x: fx.Node) -> fx.Node:
            if x not in values and (times := _times(x.meta.get("val"), rows)):
                one = self._size(received[0])
                scaled = access.value(x), one, times
                values[x] = one if times == 1 else self._call(x, operator.mul, *scaled)
            return values.get(x) or self.copy.values[x]

        for node in inner.nodes:
            values[node] = self.copy.target.node_copy(node, read)
            if access.is_tensor(node):
                state_sizes(values[node], access.shape(node))  # -1 says nothing of no rows
        return values[inner.output]

    def _size(self, x: fx.Node) -> fx.Node:
        """The number of rows of ``x``."""
        return self._call(x, SIZE_READ, access.shape(x)[0], x, 0)

    def _call(self, origin: fx.Node, op: Any, gives: Any, *arguments: Any) -> fx.Node:
        """A call that comes from where ``origin`` does."""
        node = self.copy.target.call_function(op, arguments)
        node.meta = {**origin.meta, "val": gives}
        return node


def _gathered(node: fx.Node, group: str) -> tuple[fx.Node, fx.Node | None] | None:
    """The share that ``node`` was gathered from, and the number of rows it was cut to."""
    trims = node.target is aten.slice.Tensor
    gather = collective(access.operands(node)[0] if trims else node)
    if gather is None or (gather.kind, gather.group) != (Kind.ALL_GATHER, group):
        return None
    if not trims:
        return gather.operand, None
    dim, start, end, step = list(access.written_arguments(node).values())[1:]
    from_first = (dim, start or 0, step) == (0, 0, 1)
    return (gather.operand, end) if from_first and isinstance(end, fx.Node) else None


def _times(size: Any, rows: int | torch.SymInt) -> int:
    """How many times ``rows`` a symbolic size is; 0 if it is not a multiple."""
    if not isinstance(size, torch.SymInt):
        return 0
    ratio = size_key(size) / size_key(rows)
    return int(ratio) if ratio.is_Integer else 0
