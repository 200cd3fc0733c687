"""Writes of one number where a mask is set, as a choice between it and the tensor."""

from __future__ import annotations

import torch
from torch import fx

from compiler.ir import access
from compiler.ir.graph import SpmdGraph

aten = torch.ops.aten


def with_choices(graph: SpmdGraph) -> SpmdGraph:
    """Return a graph with ``where(mask, number, x)`` for ``x[mask] = number``."""
    if not any(_mask(node) is not None for node in graph.graph.nodes):
        return graph
    target, values = fx.Graph(), dict[fx.Node, fx.Node]()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.graph.nodes:
        mask = _mask(node)
        if mask is None:
            values[node] = target.node_copy(node, values.__getitem__)
            copies[values[node]] = node
            continue
        written = access.written_arguments(node)
        example, rank = access.tensor(mask), len(access.shape(node))
        choice = values[mask]
        for dim in range(example.dim(), rank):
            choice = target.call_function(aten.unsqueeze.default, (choice, dim))
            example = example.unsqueeze(dim)
            choice.meta = {**node.meta, "val": example}
        read = choice, values[written["values"]], values[written["self"]]
        values[node] = target.call_function(aten.where.self, read)
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
