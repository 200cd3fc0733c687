"""Coalesced collectives, as bucketing passes write them, as one collective for each tensor.

all_reduce_coalesced([x, y]) is all_reduce(x) and all_reduce(y), started together; a runtime may put
them together again. Everything above this file sees the separate ones.
"""

from __future__ import annotations

import torch
from torch import fx

from compiler.ir import access
from compiler.ir.graph_copy import GraphCopy

c10d = torch.ops._c10d_functional
SINGLE = {
    c10d.all_reduce_coalesced.default: c10d.all_reduce.default,
    c10d.all_gather_into_tensor_coalesced.default: c10d.all_gather_into_tensor.default,
    c10d.reduce_scatter_tensor_coalesced.default: c10d.reduce_scatter_tensor.default,
}
"""Collective of a list of tensors -> that of one: the other arguments are the same."""


def separate(graph: fx.Graph) -> None:
    """Replace, in place, coalesced collectives whose results are read one by one."""
    for node in [n for n in graph.nodes if n.target in SINGLE]:
        numbers = {user: access.projection(user) for user in node.users}
        inputs, *rest = access.written_arguments(node).values()
        if not numbers or any(i not in range(len(inputs)) for i in numbers.values()):
            continue
        for user, i in numbers.items():
            with graph.inserting_before(user):
                one = graph.call_function(SINGLE[node.target], (inputs[i], *rest))
            one.meta = {**node.meta, **user.meta}
            user.replace_all_uses_with(one)
            graph.erase_node(user)
        graph.erase_node(node)


def separated(graph: fx.Graph) -> fx.Graph:
    """Return ``graph`` without coalesced collectives: a copy where it has some."""
    if not any(node.target in SINGLE for node in graph.nodes):
        return graph
    copy = GraphCopy()
    copy.add_all(graph.nodes)
    separate(copy.target)
    return copy.target
