"""Graphs that make the same calls: in the same order, or of the same outputs at least."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from torch import fx

from compiler.ir import access
from compiler.ir.graph import SpmdGraph


def identical(source: SpmdGraph, target: SpmdGraph) -> bool:
    """Return whether both list the same nodes with the same arguments in the same order."""
    if len(source.graph.nodes) != len(target.graph.nodes):
        return False
    numbers: dict[fx.Node, int] = {}
    for i, (a, b) in enumerate(zip(source.graph.nodes, target.graph.nodes, strict=True)):
        numbers[a] = numbers[b] = i
        is_input = a.op == b.op == "placeholder"
        same_call = (a.op, a.target) == (b.op, b.target) and _text(a, numbers) == _text(b, numbers)
        if not is_input and not same_call:
            return False
    return True


def same_calls(source: SpmdGraph, target: SpmdGraph, names: Mapping[str, str]) -> bool:
    """Return whether outputs are the same calls of the same inputs: none need be interpreted.

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
    """Return the numbers of the outputs, equal for equal calls.

    ``numbers`` has those of the calls that were numbered before, and gets those of others.
    """
    values = {n: i for i, n in enumerate(access.node_of(graph.graph, "placeholder"))}
    numbers |= {("input", i): i for i in values.values()}
    draws = 0
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            values[node] = numbers.setdefault(("attr", names[str(node.target)]), len(numbers))
        elif node.op == "call_function":
            rule = graph.meanings.get(node)
            draws += (is_random := rule is not None and rule.random)
            key = node.target, _text(node, values), draws if is_random else 0
            values[node] = numbers.setdefault(key, len(numbers))
    return [values[x] for x in access.results(access.output(graph.graph))]


def _text(node: fx.Node, numbers: Mapping[fx.Node, int]) -> str:
    """Return the arguments of a call as text, by which 1 and True differ, values by number."""
    read = access.map_operands(node, lambda x: ("%", numbers[x]))  # type: ignore[arg-type, return-value]
    return repr((read, [c.values for c in access.rank_constants(node)]))
