"""Writes into tensors, as what is there afterwards.

x[mask] = number                        where(mask, number, x)
x[:, :k] = a, then x[:, k:] = b         cat([a, b]): nothing is left of x
cat(split(x)), cat([empty, x])          x
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from compiler.check.single_device.factors import CATS, SPLITS
from compiler.ir import access
from compiler.ir.graph import SpmdGraph

aten = torch.ops.aten


def without_writes(graph: SpmdGraph) -> SpmdGraph:
    """Return a graph that computes the same without such writes; itself where it has none."""
    masks = {node: _mask(node) for node in graph.graph.nodes}
    joins = {node: _ranges(node) for node in graph.graph.nodes}
    wholes = {node: _split(node) or _rest(node) for node in graph.graph.nodes}
    if not any(x is not None for x in (*masks.values(), *joins.values(), *wholes.values())):
        return graph
    target, values = fx.Graph(), dict[fx.Node, fx.Node]()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.graph.nodes:
        mask, ranges = masks[node], joins[node]
        if (whole := wholes[node]) is not None:
            values[node] = values[whole]
            continue
        if mask is not None:
            written = access.written_arguments(node)
            read = _stretched(target, node, values[mask]), values[written["values"]]
            values[node] = target.call_function(aten.where.self, (*read, values[written["self"]]))
        elif ranges is not None:
            parts = [values[part] for part in ranges]
            dim = access.arguments(node)["dim"]
            values[node] = target.call_function(aten.cat.default, (parts, dim))
        else:
            values[node] = target.node_copy(node, values.__getitem__)
            copies[values[node]] = node
        values[node].meta = dict(node.meta)
    return graph.with_graph(target, copies)


def _mask(node: fx.Node) -> fx.Node | None:
    """Return the mask of a write of one number of the tensor's own type; None for others."""
    if node.target is not aten.index_put.default or len(node.args) != 3 or node.kwargs:
        return None
    written = access.written_arguments(node)
    indices, number = written["indices"], written["values"]
    if len(indices) != 1 or not isinstance(indices[0], fx.Node):
        return None
    mask: fx.Node = indices[0]
    plain = access.dtype(mask) is torch.bool and access.shape(number) == ()
    return mask if plain and access.dtype(number) == access.dtype(node) else None


def _stretched(target: fx.Graph, node: fx.Node, mask: fx.Node) -> fx.Node:
    """Return a mask of leading dimensions with all dimensions of a tensor."""
    example = access.tensor(mask)
    for dim in range(example.dim(), len(access.shape(node))):
        mask, example = (
            target.call_function(aten.unsqueeze.default, (mask, dim)), example.unsqueeze(dim)
        )  # fmt: skip
        mask.meta = {**node.meta, "val": example}
    return mask


def _ranges(node: fx.Node) -> list[fx.Node] | None:
    """Return what was written to the ranges of a dimension, if together they are all of it."""
    own = _range(node)
    if own is None:
        return None
    dim, size = own[0], access.shape(node)[own[0]]
    parts: dict[tuple[int, int], fx.Node] = {}
    while (one := _range(node)) is not None and one[0] == dim:
        written = access.written_arguments(node)
        if any(start < one[2] and one[1] < end for start, end in parts):
            return None  # written twice, at least in part
        parts[one[1:]] = written["src"]
        node = written["self"]
    ends = [0, *(end for _, end in sorted(parts))]
    starts = [*(start for start, _ in sorted(parts)), size]
    return [parts[place] for place in sorted(parts)] if starts == ends else None


def _range(node: fx.Node) -> tuple[int, int, int] | None:
    """Return dimension, start and end of a write to a range, the same on every rank, or None."""
    if node.target is not aten.slice_scatter.default or access.rank_constants(node):
        return None
    arguments, shape = access.arguments(node), access.shape(node)
    dim = int(arguments["dim"]) % len(shape)
    limits: list[Any] = [arguments.get("start"), arguments.get("end")]
    plain = all(x is None or type(x) is int for x in limits) and arguments.get("step", 1) == 1
    if not plain or not isinstance(shape[dim], int):
        return None
    taken = range(shape[dim])[slice(*limits)]
    same = access.dtype(access.written_arguments(node)["src"]) == access.dtype(node)
    return (dim, taken.start, taken.stop) if len(taken) and same else None


def _split(node: fx.Node) -> fx.Node | None:
    """Return the tensor of which a ``cat`` joins all parts, in order; None for others."""
    if node.target not in CATS:
        return None
    parts = access.operands(node)
    calls = {access.computed_by(part) for part in parts}
    split = calls.pop() if len(calls) == 1 else node
    if split.target not in SPLITS or split in parts:
        return None
    dims = {int(access.arguments(x)["dim"]) % len(access.shape(node)) for x in (split, node)}
    numbers = [access.projection(part) for part in parts]
    whole: fx.Node = access.operands(split)[0]
    same = len(dims) == 1 and numbers == list(range(len(access.value(split))))
    return whole if same else None


def _rest(node: fx.Node) -> fx.Node | None:
    """Return the tensor beside which a ``cat`` joins tensors without elements; None for others."""
    if node.target not in CATS:
        return None
    parts = [x for x in access.operands(node) if access.shape(x) != (0,)]
    alone = len(parts) == 1 and len(access.operands(node)) > 1
    return parts[0] if alone and access.dtype(parts[0]) == access.dtype(node) else None
