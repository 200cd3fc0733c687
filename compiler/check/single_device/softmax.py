"""Softmax as what it is made of, for ranks that each have a part of its dimension.

softmax(x) = exp(x - m) / sum exp(x - m)             where m = max x, along the same dimension
log_softmax(x) = x - m - log sum exp(x - m)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from compiler.ir import access
from compiler.ir.graph import SpmdGraph

aten = torch.ops.aten
SOFTMAX = (aten.softmax.int, aten._softmax.default)
LOG_SOFTMAX = (aten.log_softmax.int, aten._log_softmax.default)


def with_softmax_written_out(graph: SpmdGraph) -> SpmdGraph:
    """Return a graph that computes the same without these ops; itself where it has none."""
    if not any(node.target in (*SOFTMAX, *LOG_SOFTMAX) for node in graph.graph.nodes):
        return graph
    target, values = fx.Graph(), dict[fx.Node, fx.Node]()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.graph.nodes:
        if node.target in (*SOFTMAX, *LOG_SOFTMAX):
            values[node] = _written_out(target, node, values[access.operands(node)[0]])
        else:
            values[node] = target.node_copy(node, values.__getitem__)
            copies[values[node]] = node
    return graph.with_graph(target, copies)


def _written_out(target: fx.Graph, node: fx.Node, x: fx.Node) -> fx.Node:
    like, dim = access.tensor(node), int(access.arguments(node)["dim"])
    sizes = list(like.shape)
    sizes[dim : dim + 1 or None] = [1] * bool(sizes)
    one = like.new_empty(sizes)

    def call(op: Any, example: torch.Tensor, *arguments: Any) -> fx.Node:
        made = target.call_function(op, arguments)
        made.meta = {**node.meta, "val": example}
        return made

    greatest = call(aten.amax.default, one, x, [dim], True)
    less = call(aten.sub.Tensor, like, x, greatest)
    powers = call(aten.exp.default, like, less)
    total = call(aten.sum.dim_IntList, one, powers, [dim], True)
    if node.target in LOG_SOFTMAX:
        return call(aten.sub.Tensor, like, less, call(aten.log.default, one, total))
    return call(aten.div.Tensor, like, powers, total)
