"""Placement analysis: what each rank holds of every value, per mesh axis.

Direction  forward, one sweep in graph order.
Domain     flat, per axis: Replicate, Shard(d), Partial(op), Varying; Varying is the top.
Result     node -> placements of every value that is one tensor; the graph is not touched.
Refuses    nothing: what the rules do not derive is Varying. Replicate is taken from the
           replication analysis, which is exact; Shard and Partial follow from factor labels:

    every operand with the factor cut along it, all others replicated  =>
        result carries the factor: Shard there;  only operands carry it: Partial(sum)
    one partial operand per term, all others replicated                =>  Partial
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import fx

from compiler.analysis.replication import Classes, replicated_over, replication
from compiler.ir import access
from compiler.ir.collectives import OPS, WAIT, Kind, collective
from compiler.ir.graph import SpmdGraph
from compiler.ir.placement import Partial, Placement, Placements, Replicate, Shard, Varying
from compiler.ir.row_ops import all_slice
from compiler.ir.rules import Meaning


def placements(graph: SpmdGraph) -> Mapping[fx.Node, Placements]:
    """Placements of every tensor of ``graph``."""
    classes = replication(graph)
    by_axis = [_along(graph, position, classes) for position in range(len(graph.mesh.axes))]
    return {
        node: tuple(found[node] for found in by_axis)
        for node in graph.graph.nodes
        if access.is_tensor(node) and node in by_axis[0]
    }


def _along(
    graph: SpmdGraph, position: int, classes: Mapping[fx.Node, Classes]
) -> dict[fx.Node, Placement]:
    axis = list(graph.mesh.axes)[position]
    groups = graph.mesh.group(axis)
    found: dict[fx.Node, Placement] = {}
    parts: dict[tuple[fx.Node, int], Placement] = {}
    for node in graph.graph.nodes:
        if node in classes and replicated_over(classes[node], groups):
            found[node] = Replicate()
        elif node.op in ("placeholder", "get_attr"):
            found[node] = graph.inputs[str(node.target)][position]
        elif node.target is WAIT:
            found[node] = found[access.operands(node)[0]]
        elif node.target in OPS:
            found[node] = _communicated(graph, axis, node, found)
        elif (cut := all_slice(node)) is not None:
            whole = found[cut.operand] == Replicate() and graph.mesh.axes_of(cut.group) == (axis,)
            found[node] = Shard(cut.dim) if whole else Varying()
        elif (index := access.projection(node)) is not None:
            found[node] = parts.get((access.operands(node)[0], index), Varying())
        elif node in graph.meanings:
            results = list(_results(graph.meanings[node], node, found))
            found[node] = results[0] if results else Varying()
            parts |= {(node, i): placement for i, placement in enumerate(results)}
    return found


def _communicated(
    graph: SpmdGraph, axis: str, node: fx.Node, found: Mapping[fx.Node, Placement]
) -> Placement:
    """After a collective over exactly this axis, or over another one."""
    what = collective(node)
    assert what is not None, f"%{node.name} is no collective"
    held = found[what.operand]
    axes = graph.mesh.axes_of(what.group)
    if axes is None:
        return Varying()
    if axis not in axes:
        linear = what.kind is Kind.ALL_REDUCE and what.op == "sum"
        return held if linear and isinstance(held, Partial) and held.op == "sum" else (
            held if what.kind is Kind.ALL_REDUCE and isinstance(held, Shard) else Varying()
        )  # fmt: skip
    if axes != (axis,):
        return Varying()
    if what.kind is Kind.REDUCE_SCATTER and held in (Partial(what.op), Varying()):
        return Shard(0)
    return Varying()


def _results(
    rule: Meaning | None, node: fx.Node, found: Mapping[fx.Node, Placement]
) -> Iterator[Placement]:
    """Placement of every result of a call whose operands are not all replicated."""
    if rule is None or rule.random or rule.rank_dependent:
        return
    held = [found[x] for x in access.operands(node)]
    whole = [isinstance(p, Replicate) for p in held]
    kinds = {p for p in held if isinstance(p, Partial)}
    if len(kinds) == 1 and kinds <= {Partial("sum"), Partial("avg")}:
        partial = [p in kinds for p in held]
        keeps = rule.keeps_partial(partial, whole)
        for _ in rule.dims.results if rule.dims else (None,):
            yield kinds.copy().pop() if keeps else Varying()
        return
    if rule.dims is None or not all(isinstance(p, Replicate | Shard) for p in held):
        return
    cut = _cut(rule.dims.operands, held)
    for labels in rule.dims.results if cut is not None else ():
        if cut in labels:
            yield Shard(labels.index(cut))
        else:
            yield Partial("sum") if rule.terms is not None else Varying()


def _cut(
    operands: Sequence[Sequence[int | str | None]], held: Sequence[Placement]
) -> int | str | None:
    """The one factor that all shards cut, in every operand that carries it; None if there is none.

    Stands for no factor where a shard cuts a dimension that is needed whole.
    """
    factors = {
        labels[p.dim] for labels, p in zip(operands, held, strict=True) if isinstance(p, Shard)
    }
    if len(factors) != 1 or None in factors:
        return None
    (factor,) = factors
    for labels, placement in zip(operands, held, strict=True):
        if factor in labels and placement != Shard(labels.index(factor)):
            return None
    return factor
