"""Turns gathered rows into rows sent to the ranks that need them, where the plan says so.

Before    g = wait(all_gather(x));  y = wait(reduce_scatter(region(g, …)))
After     r, …, places, counts = dispatch_rows([x, …]);  p = region(r, …);  y = combine_rows(p, …)

The checker shows that the region treats rows alike and gives zero where a rank owns no id
(``compiler.check.row_ownership``): that is what the two ops mean the same as all_gather and
reduce_scatter for. ``_Expansion`` puts those back, with the operands of the dispatched calls, and
the checker compares that with the proven graph.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from compiler.analysis.expert_regions import ExpertRegion, region
from compiler.analysis.row_shards import SIZE_READ
from compiler.check import check
from compiler.check.row_ownership import Owners, owners
from compiler.ir import access
from compiler.ir.collectives import (
    Collective,
    Kind,
    collective,
    collectives,
    insert_all_gather,
    insert_reduce_scatter,
)
from compiler.ir.dispatch import COMBINE_ROWS, DISPATCH_ROWS, MARK
from compiler.ir.graph import SpmdGraph
from compiler.ir.remark import Remark, RemarkKind
from compiler.ir.row_ops import ALL_SLICE, PAD_ROWS, divides, resized, share
from compiler.ir.rules.meaning import size_key
from compiler.ir.scale_rows import SIZE_ARGUMENTS

aten = torch.ops.aten


@dataclass
class Sent:
    """One region whose rows are sent, and what it became.

    Attributes:
        start: the reduce_scatter.
        reduction: likewise.
        region: what computes its operand.
        owners: who needs which rows.
        calls: the calls that it became.
        received: the rows received, input by input.
        partial: the region's output, on received rows.
        shares: what is sent, input by input.
        count: number of all rows.
        inner: what computes the partial sum from the rows received, sizes included.
    """

    start: fx.Node
    reduction: Collective
    region: ExpertRegion
    owners: Owners
    calls: list[fx.Node] = field(default_factory=list)
    received: tuple[fx.Node, ...] = ()
    partial: fx.Node | None = None
    shares: tuple[fx.Node, ...] = ()
    count: fx.Node | None = None
    inner: list[fx.Node] = field(default_factory=list)


def send_rows(graph: SpmdGraph) -> tuple[SpmdGraph, list[Remark]]:
    """The graph with marked regions on rows that are sent, proven equal, and what was not done.

    Args:
        graph: a proven graph. Not changed.
    """
    found, remarks = list[Sent](), list[Remark]()
    for start, reduction in collectives(graph.graph):
        if reduction.kind is not Kind.REDUCE_SCATTER or not start.meta.get(MARK):
            continue
        matched = _matched(graph, start, reduction)
        if isinstance(matched, Sent):
            found.append(matched)
        else:
            where = access.layer_path(start)
            why = f"rows are gathered, not sent: {matched}"
            remarks.append(Remark(RemarkKind.MISSED, f"%{start.name}", why, where))
    if not found:
        return graph, remarks
    target = _Dispatched(graph, found).written()
    report = check(graph, _expanded(graph, target, found))
    if not report.verdict.runs:
        why = (
            f"rows are gathered, not sent: the checker says {report.verdict}, {report.explanation}"
        )
        return graph, [*remarks, Remark(RemarkKind.MISSED, "", why)]
    kept = target.graph
    kept.eliminate_dead_code(
        lambda n: n.op in ("placeholder", "output") or not access.has_result(n)
    )
    copied = {n: m for n, m in target.copied.items() if n in set(kept.nodes)}
    return SpmdGraph(graph.root, kept, target.mesh, target.inputs, copied), remarks


def _matched(graph: SpmdGraph, start: fx.Node, reduction: Collective) -> Sent | str:
    groups = graph.mesh.group(reduction.group)
    padding = reduction.operand.target is PAD_ROWS
    output = access.operands(reduction.operand)[0] if padding else reduction.operand
    inner = region(graph, output, groups)
    if inner is None:
        return "what it adds up is not computed from rows that all ranks hold"
    known = owners(graph, groups, inner.inputs, inner.nodes)
    return known if isinstance(known, str) else Sent(start, reduction, inner, known)


def _gathered(node: fx.Node, group: str) -> tuple[fx.Node, fx.Node | None] | None:
    """The shares that ``node`` was gathered from, and the number of rows it was cut to."""
    trims = node.target is aten.slice.Tensor
    found = collective(access.operands(node)[0] if trims else node)
    if found is None or found.kind is not Kind.ALL_GATHER or found.group != group:
        return None
    if not trims:
        return found.operand, None
    given = access.written_arguments(node)
    whole = (given["dim"], given["start"] or 0, given["step"]) == (0, 0, 1)
    end = given["end"]
    return (found.operand, end) if whole and isinstance(end, fx.Node) else None


class _Dispatched:
    """Writes the graph with rows sent."""

    def __init__(self, graph: SpmdGraph, found: Sequence[Sent]) -> None:
        self.graph = graph
        self.target = fx.Graph()
        self.copies: dict[fx.Node, fx.Node] = {}
        self.at = {s.reduction.result: s for s in found}

    def written(self) -> SpmdGraph:
        origins: dict[fx.Node, fx.Node] = {}
        for node in self.graph.graph.nodes:
            if node in self.at:
                self.copies[node] = self._sent(self.at[node])
            else:
                self.copies[node] = self.target.node_copy(node, self.copies.__getitem__)
                origins[self.copies[node]] = node
        return self.graph.with_graph(self.target, origins)

    def _sent(self, sent: Sent) -> fx.Node:
        group, ranks = sent.reduction.group, len(sent.owners.first)
        shares = []
        for x in sent.region.inputs:
            held = _gathered(x, group)
            if held is None:
                shares.append(self._call(ALL_SLICE, x, self.copies[x], 0, ranks, group))
            else:
                shares.append(self.copies[held[0]])
                sent.count = sent.count or (held[1] and self.copies[held[1]])
        if sent.count is None:
            sent.count = self._size(self.copies[sent.region.inputs[0]])
        ids = shares[sent.region.inputs.index(sent.owners.ids)]
        first, end = list(sent.owners.first), list(sent.owners.end)
        origin = sent.start
        call = self.target.call_function(DISPATCH_ROWS, (shares, ids, first, end, group))
        rows = access.shape(ids)[0] * ranks  # as in a CUDA graph; mostly less
        values = [resized(access.tensor(s), 0, rows) for s in shares]
        values += [torch.empty(0, dtype=torch.int64, device=values[0].device)] * 2
        call.meta = {**origin.meta, "val": values}
        parts = []
        for i, value in enumerate(values):
            parts.append(self.target.call_function(operator.getitem, (call, i)))
            parts[-1].meta = {**origin.meta, "val": value}
        *received, places, counts = parts
        sent.calls, sent.received = [call, *parts], tuple(received)
        sent.shares = tuple(shares)
        sent.inner = _on_rows(self.target, sent.region, received, self.copies)
        sent.partial = sent.inner[-1]
        result = self.target.call_function(
            COMBINE_ROWS, (sent.partial, places, counts, self._size(ids), group)
        )
        assert sent.reduction.result is not None, "what is waited for has a result"
        result.meta = dict(sent.reduction.result.meta)
        sent.calls.append(result)
        return result

    def _call(self, op: Any, like: fx.Node, x: fx.Node, *arguments: Any) -> fx.Node:
        made = self.target.call_function(op, (x, *arguments))
        made.meta = {**like.meta, "val": op(access.tensor(x), *arguments)}
        return made

    def _size(self, x: fx.Node) -> fx.Node:
        made = self.target.call_function(SIZE_READ, (x, 0))
        made.meta = {"val": access.shape(x)[0]}
        return made


def _on_rows(
    target: fx.Graph,
    inner: ExpertRegion,
    received: Sequence[fx.Node],
    copies: Mapping[fx.Node, fx.Node],
) -> list[fx.Node]:
    """The region on other rows than those of its inputs: numbers of rows are read off these."""
    written = list[fx.Node]()
    known = dict(zip(inner.inputs, received, strict=True))
    rows, others = access.shape(inner.inputs[0])[0], access.shape(received[0])[0]
    sizes: dict[int, fx.Node] = {}

    def size(times: int) -> fx.Node:
        if times not in sizes:
            call: tuple[Any, Any] = SIZE_READ, (received[0], 0)
            sizes[times] = target.call_function(
                *(call if times == 1 else (operator.mul, (size(1), times)))
            )
            sizes[times].meta = {"val": others * times}
            written.append(sizes[times])
        return sizes[times]

    def read(x: fx.Node) -> fx.Node:
        if x in known:
            return known[x]
        times = _times(x.meta.get("val"), rows)
        return size(times) if times else copies[x]

    for node in inner.nodes:
        # Node by node: arguments that are sizes may need nodes of their own first.
        operands = {x: read(x) for x in node.all_input_nodes}
        known[node] = target.node_copy(node, operands.__getitem__)
        known[node].meta = {**node.meta, "val": _with_rows(node.meta["val"], rows, others)}
        _state_sizes(known[node])
        written.append(known[node])
    return written


def _state_sizes(node: fx.Node) -> None:
    """Writes sizes that the call leaves to the op (-1), which it cannot tell where no rows are."""
    for name in SIZE_ARGUMENTS if access.projection(node) is None else ():
        sizes = access.written_arguments(node).get(name)
        if isinstance(sizes, list | tuple) and -1 in sizes:
            known = [k if s == -1 and isinstance(k, int) else s
                     for s, k in zip(sizes, access.shape(node), strict=True)]  # fmt: skip
            access.set_argument(node, name, known)


def _times(size: Any, rows: int | torch.SymInt) -> int:
    """How many times ``rows`` a symbolic size is; 0 if it is no multiple."""
    if not isinstance(size, torch.SymInt):
        return 0
    ratio = size_key(size) / size_key(rows)
    return int(ratio) if ratio.is_Integer else 0


def _with_rows(held: Any, rows: int | torch.SymInt, others: int | torch.SymInt) -> Any:
    """A size or tensor with ``others`` in place of ``rows``."""
    if isinstance(held, list | tuple):
        return type(held)(_with_rows(x, rows, others) for x in held)
    if isinstance(held, torch.Tensor):
        times = _times(held.shape[0], rows) if held.dim() else 0
        return resized(held, 0, others * times) if times else held
    times = _times(held, rows)
    return others * times if times else held


def _expanded(graph: SpmdGraph, sent: SpmdGraph, found: Sequence[Sent]) -> SpmdGraph:
    """``sent`` with all_gathers for every dispatch_rows, and a reduce_scatter for combine_rows."""
    target, copies, origins = fx.Graph(), dict[fx.Node, fx.Node](), dict[fx.Node, fx.Node]()
    calls = {call: s for s in found for call in s.calls}
    inner = {node: s for s in found for node in s.inner}
    for node in sent.graph.nodes:
        if node not in calls:
            copies[node] = target.node_copy(node, copies.__getitem__)
            if node in inner:
                s = inner[node]
                assert s.count is not None, "rows are counted"
                received, rows = access.shape(s.received[0])[0], s.count.meta["val"]
                copies[node].meta["val"] = _with_rows(node.meta["val"], received, rows)
            else:
                origins[copies[node]] = node
            continue
        s = calls[node]
        if node is s.calls[0]:
            for part, x in zip(s.received, s.shares, strict=True):
                copies[part] = _whole(target, s, copies, x, part)
        elif node is s.calls[-1]:
            assert s.partial is not None, "written before"
            copies[node] = _added_up(target, s, copies[s.partial], node)
        elif node not in s.received:
            copies[node] = copies[s.received[0]]  # only combine_rows reads these
    return SpmdGraph(
        graph.root, target, sent.mesh, sent.inputs,
        {copy: sent.copied[node] for copy, node in origins.items() if node in sent.copied},
    )  # fmt: skip


def _whole(
    target: fx.Graph, s: Sent, copies: dict[fx.Node, fx.Node], x: fx.Node, received: fx.Node
) -> fx.Node:
    ranks, group = len(s.owners.first), s.reduction.group
    padded = access.tensor(received)
    gathered = insert_all_gather(target, copies[x], group, ranks, padded)
    assert s.count is not None, "rows are counted"
    rows = s.count.meta["val"]
    if divides(ranks, rows):
        return gathered
    trimmed = target.call_function(aten.slice.Tensor, (gathered, 0, 0, copies[s.count]))
    trimmed.meta = {**received.meta, "val": resized(padded, 0, rows)}
    return trimmed


def _added_up(target: fx.Graph, s: Sent, partial: fx.Node, like: fx.Node) -> fx.Node:
    ranks, group = len(s.owners.first), s.reduction.group
    assert s.count is not None, "rows are counted"
    rows = s.count.meta["val"]
    if not divides(ranks, rows):
        held, partial = partial, target.call_function(PAD_ROWS, (partial, 0, ranks))
        partial.meta = {
            **held.meta,
            "val": resized(access.tensor(held), 0, share(rows, ranks) * ranks),
        }
    return insert_reduce_scatter(target, partial, "sum", group, ranks, access.tensor(like))
