"""Graphs that return the same calls, in whatever order, and whatever else they call."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from compiler.ir import access
from compiler.ir.graph import SpmdGraph


def same_calls(source: SpmdGraph, target: SpmdGraph, names: Mapping[str, str]) -> bool:
    """Whether outputs are the same calls of the same inputs: they need not be interpreted.

    Args:
        source: a well-formed graph, like ``target``: no call changes its operands.
        target: a graph with inputs of the same types.
        names: attribute of either graph -> a name that two share if they hold the same tensor.
    """
    numbers: dict[Hashable, int] = {}
    own_names = {name: name for name in names}
    return _returned(source, own_names, numbers) == _returned(target, names, numbers)


def _returned(
    graph: SpmdGraph, names: Mapping[str, str], numbers: dict[Hashable, int]
) -> list[int]:
    """Numbers of the outputs, equal for equal calls; ``numbers`` has those of calls seen so far."""
    values = {n: i for i, n in enumerate(access.node_of(graph.graph, "placeholder"))}
    numbers |= {("input", i): i for i in values.values()}
    draws = 0
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            values[node] = numbers.setdefault(("attr", names[str(node.target)]), len(numbers))
        elif node.op == "call_function":
            rule = graph.meanings.get(node)
            draws += rule is not None and rule.random
            read = access.map_operands(node, lambda x: ("%", values[x]))  # type: ignore[arg-type, return-value]
            constants = [c.values for c in access.rank_constants(node)]
            drawn = draws if rule is not None and rule.random else 0
            key = node.target, repr((read, constants)), drawn  # as text, 1 and True differ
            values[node] = numbers.setdefault(key, len(numbers))
    return [values[x] for x in access.results(access.output(graph.graph))]
