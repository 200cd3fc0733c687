"""Replaces reductions over ranks that add + RMSNorm follow by fused ops, and proves the result.

Before    t = wait(all_reduce(x));  h = t + residual;  y = norm(h)
After     y, h = commplan.all_reduce_add_rms_norm(x, residual, weight, eps, offset)

Before    t = wait(reduce_scatter(x));  h = t + residual;  g = wait(all_gather(norm(h)))
After     g, h = commplan.reduce_scatter_add_rms_norm_all_gather(x, residual, weight, eps, offset)

Rows that ranks cannot share evenly are padded before the reduce_scatter and cut off behind the
all_gather; the fused op does both itself.

A fused op means the composition it replaces. ``expanded`` puts the compositions back, with the
operands that the fused calls have, and the checker compares that with the proven graph.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from compiler.analysis.norm_regions import NormRegion, Recognizer
from compiler.analysis.row_shards import SIZE_READ
from compiler.check import check
from compiler.ir import access
from compiler.ir.collectives import Collective, Kind, collective, collectives
from compiler.ir.fused_ops import ALL_REDUCE_NORM, SHARED_NORM
from compiler.ir.graph import SpmdGraph
from compiler.ir.remark import Remark, RemarkKind
from compiler.ir.row_ops import ALL_SLICE, PAD_ROWS
from compiler.ir.rules.meaning import size_key

aten = torch.ops.aten


@dataclass(frozen=True)
class Composition:
    """What one fused call stands for, in values of the graph before fusion.

    Attributes:
        start: the reduction's first node.
        reduction: the reduction.
        region: the addition and the norm.
        gather: the all_gather of the norm; None where all ranks hold all rows.
        padding: adds rows to the reduction's operand, None where none are missing.
        trim: cuts them off the gathered rows.
    """

    start: fx.Node
    reduction: Collective
    region: NormRegion
    gather: fx.Node | None
    padding: fx.Node | None = None
    trim: fx.Node | None = None

    @property
    def x(self) -> fx.Node:
        """What is summed over ranks."""
        return self.reduction.operand if self.padding is None else self.padding.all_input_nodes[0]

    @property
    def y(self) -> fx.Node:
        """The value that the fused call's first result replaces."""
        if self.gather is None:
            return self.region.y
        return self.trim or _result(self.gather)

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        """All of it but the trim, in an order in which it runs."""
        assert self.reduction.result is not None
        gathered = () if self.gather is None else (self.gather, _result(self.gather))
        body = (self.region.addition, *self.region.inner, *gathered)
        padding = () if self.padding is None else (self.padding,)
        return (*padding, self.start, self.reduction.result, *body)


def _result(start: fx.Node) -> fx.Node:
    """What a collective gives."""
    found = collective(start)
    assert found is not None, f"%{start.name} is no collective"
    assert found.result is not None, f"%{start.name} is not waited for"
    return found.result


Served = Callable[[str, Sequence[fx.Node]], str | None]
"""Group name, what its fused ops would reduce -> why its ranks cannot run them, or None."""


def fuse(graph: SpmdGraph, served: Served) -> tuple[SpmdGraph, list[Remark]]:
    """The graph with fused ops, proven equal to ``graph``, and what was and was not fused.

    Args:
        graph: a proven graph. Not changed.
        served: asked once for every group with something to fuse.
    """
    found, remarks = compositions(graph, served)
    if not found:
        return graph, remarks
    fused, calls = _replaced(graph, found)
    report = check(graph, expanded(graph, fused, calls))
    if not report.verdict.runs:
        why = f"fused ops left out: the checker says {report.verdict}, {report.explanation}"
        return graph, [Remark(RemarkKind.MISSED, "", why)]
    return fused, remarks


def compositions(graph: SpmdGraph, served: Served) -> tuple[list[Composition], list[Remark]]:
    """What can be fused, and a remark for every reduction."""
    recognizer, found, remarks = Recognizer(graph), list[Composition](), list[Remark]()
    matches = [
        (start, reduction, _composition(recognizer, start, reduction))
        for start, reduction in collectives(graph.graph)
        if reduction.kind in (Kind.ALL_REDUCE, Kind.REDUCE_SCATTER)
    ]
    operands: dict[str, list[fx.Node]] = {}
    for _, reduction, matched in matches:
        if isinstance(matched, Composition):
            operands.setdefault(reduction.group, []).append(matched.x)
    refused = {group: served(group, reduced) for group, reduced in operands.items()}
    for start, reduction, matched in matches:
        if isinstance(matched, Composition):
            matched = refused[reduction.group] or matched
        passed = isinstance(matched, Composition)
        why = "fused with add + RMSNorm" if passed else f"not fused: {matched}"
        kind = RemarkKind.PASSED if passed else RemarkKind.MISSED
        remarks.append(
            Remark(kind, f"%{start.name}", f"{reduction.kind} {why}", access.layer_path(start))
        )
        if isinstance(matched, Composition):
            found.append(matched)
    return found, remarks


def _composition(
    recognizer: Recognizer, start: fx.Node, reduction: Collective
) -> Composition | str:
    region = recognizer.fusable(reduction)
    if isinstance(region, str):
        return region
    operand = access.tensor(reduction.operand)
    if reduction.kind is Kind.ALL_REDUCE:
        return Composition(start, reduction, region, None)
    gathers = [u for u in region.y.users if _gathers(u, reduction.group)]
    if len(gathers) != 1:
        return f"the norm of its rows is gathered {len(gathers)} times"
    if operand.dim() != 2:
        return f"its operand has {operand.dim()} dimensions"
    if reduction.operand.target is not PAD_ROWS:
        return Composition(start, reduction, region, gathers[0])
    found = Composition(start, reduction, region, gathers[0], reduction.operand)
    trims = list(found.y.users)
    if len(trims) != 1 or not _trims(trims[0], found.x):
        return "the norm of its padding is read"
    return replace(found, trim=trims[0])


def _gathers(node: fx.Node, group: str) -> bool:
    found = collective(node)
    return found is not None and found.kind is Kind.ALL_GATHER and found.group == group


def _trims(node: fx.Node, x: fx.Node) -> bool:
    """Whether ``node`` keeps as many rows as ``x`` has, from the first on."""
    if node.target is not aten.slice.Tensor:
        return False
    given = access.arguments(node)
    first = (given.get("dim", 0), given.get("start") or 0, given.get("step", 1)) == (0, 0, 1)
    kept, rows = (size_key(access.shape(n)[0]) for n in (node, x))
    return first and bool(kept == rows)


def _replaced(
    graph: SpmdGraph, found: list[Composition]
) -> tuple[SpmdGraph, dict[fx.Node, Composition]]:
    """The graph with one call for every composition, and which call stands for which."""
    at = {c.region.addition: c for c in found}
    shares = {c.region.y: c for c in found if c.gather is not None and len(c.region.y.users) > 1}
    target, copies, origins = fx.Graph(), dict[fx.Node, fx.Node](), dict[fx.Node, fx.Node]()
    results, calls = dict[fx.Node, fx.Node](), dict[fx.Node, Composition]()
    for node in graph.graph.nodes:
        if node in results:
            copies[node] = results[node]
        elif node in shares:
            copies[node] = _share(target, results[shares[node].y], shares[node])
        elif node in at:
            call, y, h = _called(target, at[node], copies)
            calls[call], results[at[node].y], copies[node] = at[node], y, h
        else:
            copies[node] = target.node_copy(node, lambda x: copies[x])
            origins[copies[node]] = node
    target.eliminate_dead_code(
        lambda n: n.op in ("placeholder", "output") or not access.has_result(n)
    )
    kept = set(target.nodes)
    return graph.with_graph(target, {c: n for c, n in origins.items() if c in kept}), calls


def _share(target: fx.Graph, whole: fx.Node, found: Composition) -> fx.Node:
    """This rank's rows of the gathered norm, for those that read no others."""
    size = access.arguments(found.start)["group_size"]
    made = target.call_function(ALL_SLICE, (whole, 0, size, found.reduction.group))
    made.meta = dict(found.region.y.meta)
    return made


def _called(
    target: fx.Graph, found: Composition, copies: dict[fx.Node, fx.Node]
) -> tuple[fx.Node, fx.Node, fx.Node]:
    region, reduction = found.region, found.reduction
    operands = tuple(copies[n] for n in (found.x, region.residual, region.weight))
    numbers = (region.eps, region.offset)
    if found.gather is None:
        call = target.call_function(ALL_REDUCE_NORM, (*operands, *numbers, reduction.group))
    else:
        size = access.arguments(found.start)["group_size"]
        call = target.call_function(SHARED_NORM, (*operands, *numbers, size, reduction.group))
    values = access.tensor(found.y), access.tensor(region.addition)
    call.meta = {**region.addition.meta, "val": values}
    picked = []
    for index, value in enumerate(values):
        item = target.call_function(operator.getitem, (call, index))
        item.meta = {**region.addition.meta, "val": value}
        picked.append(item)
    return call, picked[0], picked[1]


def expanded(source: SpmdGraph, fused: SpmdGraph, calls: dict[fx.Node, Composition]) -> SpmdGraph:
    """``fused`` with every call replaced by its composition on the operands of the call."""
    target, copies, origins = fx.Graph(), dict[fx.Node, fx.Node](), dict[fx.Node, fx.Node]()
    results: dict[fx.Node, tuple[fx.Node, fx.Node]] = {}
    for node in fused.graph.nodes:
        if node in calls:
            results[node] = _inlined(target, calls[node], [copies[n] for n in node.args[:3]])
        elif access.projection(node) is not None and node.args[0] in results:
            copies[node] = results[node.args[0]][access.projection(node) or 0]
        else:
            copies[node] = target.node_copy(node, lambda x: copies[x])
            if node in fused.copied:
                origins[copies[node]] = node
    return SpmdGraph(
        source.root, target, fused.mesh, fused.inputs,
        {copy: fused.copied[node] for copy, node in origins.items()},
    )  # fmt: skip


def _inlined(
    target: fx.Graph, found: Composition, operands: list[fx.Node]
) -> tuple[fx.Node, fx.Node]:
    x, residual, weight = operands
    region = found.region
    known = {found.x: x, region.residual: residual, region.weight: weight}
    for node in found.nodes:
        known[node] = target.node_copy(node, lambda n: known[n])
    if found.trim is None:
        return known[found.y], known[region.addition]
    assert found.gather is not None, "what is trimmed was gathered"
    rows = target.call_function(SIZE_READ, (x, 0))
    rows.meta = {"val": access.shape(x)[0]}
    trimmed = target.call_function(aten.slice.Tensor, (known[_result(found.gather)], 0, 0, rows))
    trimmed.meta = dict(found.trim.meta)
    return trimmed, known[region.addition]
