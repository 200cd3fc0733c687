"""Graphs with the composition of ops that have one in their place (``ir.decompositions``)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from compiler.errors import GraphError
from compiler.ir import access
from compiler.ir.decompositions import FUSED, Composition
from compiler.ir.graph import SpmdGraph
from compiler.ir.graph_copy import GraphCopy


def expanded(
    graph: SpmdGraph, compositions: Mapping[object, Composition] = FUSED
) -> tuple[SpmdGraph, Mapping[fx.Node, fx.Node]]:
    """Return ``graph`` with compositions written out, and its nodes -> the same values there.

    Results state what the call states: ``check_metadata`` holds the composition to it. A graph
    that calls none of the ops is returned itself.

    Raises:
        GraphError: a call is read otherwise than result by result.
    """
    if not any(node.target in compositions for node in graph.graph.nodes):
        return graph, {}
    copy, results = GraphCopy(), dict[fx.Node, tuple[fx.Node, ...]]()
    values = copy.values
    for node in graph.graph.nodes:
        calls = [x for x in node.all_input_nodes if x in results]
        if node.target in compositions:
            arguments = tuple(access.written_arguments(node).values())
            written = compositions[node.target](*fx.node.map_arg(arguments, values.__getitem__))
            if not access.is_tensor(node):
                results[node] = written
                continue
            (values[node],) = written
        elif calls:
            index = access.projection(node)
            if index is None or index not in range(len(results[calls[0]])):
                raise GraphError(f"%{node.name} reads no result of %{calls[0].name}")
            values[node] = results[calls[0]][index]
        else:
            copy.add(node)
        values[node].meta = dict(node.meta)
    return graph.with_graph(copy.target, copy.origins), values
