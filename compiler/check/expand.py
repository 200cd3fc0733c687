"""Graphs with the composition of every op that has one in its place (``ir.decompositions``)."""

from __future__ import annotations

from torch import fx

from compiler.errors import GraphError
from compiler.ir import access
from compiler.ir.decompositions import COMPOSITIONS
from compiler.ir.graph import SpmdGraph


def expanded(graph: SpmdGraph) -> SpmdGraph:
    """Return ``graph`` with compositions written out; ``graph`` itself if it calls none.

    Results state what the call states: ``check_metadata`` holds the composition to it.

    Raises:
        GraphError: a call is read otherwise than result by result.
    """
    if not any(node.target in COMPOSITIONS for node in graph.graph.nodes):
        return graph
    target, copies, origins = fx.Graph(), dict[fx.Node, fx.Node](), dict[fx.Node, fx.Node]()
    results: dict[fx.Node, tuple[fx.Node, ...]] = {}
    for node in graph.graph.nodes:
        calls = [x for x in node.all_input_nodes if x in results]
        if node.target in COMPOSITIONS:
            arguments = tuple(access.written_arguments(node).values())
            read = fx.node.map_arg(arguments, copies.__getitem__)
            results[node] = COMPOSITIONS[node.target](*read)
        elif calls:
            index = access.projection(node)
            if index is None or index not in range(len(results[calls[0]])):
                raise GraphError(f"%{node.name} reads no result of %{calls[0].name}")
            copies[node] = results[calls[0]][index]
            copies[node].meta = dict(node.meta)
        else:
            copies[node] = target.node_copy(node, copies.__getitem__)
            origins[copies[node]] = node
    return graph.with_graph(target, origins)
