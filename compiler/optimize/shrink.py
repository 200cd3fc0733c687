"""A graph on which something fails, made small: what is left still fails.

First all that is computed after some value goes, then all that is computed before one: the places
are bisected. Then, as long as something can go: an output; what a value was computed from, which
becomes an input with the placement that it has; an op, whose operand stands in its place. Every
candidate is written as text and read again: it is well-formed, and fails as a file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from torch import fx

from compiler.analysis.placements import placements
from compiler.errors import CommPlanError
from compiler.ir import access
from compiler.ir.collectives import OPS, WAIT, collective
from compiler.ir.graph import SpmdGraph
from compiler.ir.rules.meaning import shape_key
from compiler.ir.text import parse_graph, print_graph

Fails = Callable[[SpmdGraph], bool]
SECONDS = 120.0


def text_of(graph: SpmdGraph) -> str:
    """Return a graph as a file that keeps names, layers and source lines."""
    return print_graph(graph, source=True, names=True)


def shrink(graph: SpmdGraph, fails: Fails, seconds: float = SECONDS) -> SpmdGraph:
    """Return the smallest graph that was reached in so many seconds, and still fails.

    Args:
        graph: fails.
        fails: whether a graph does; one that it raises CommPlanError for does not.
        seconds: how long to search.
    """
    last = time.monotonic() + seconds

    def still_fails(candidate: SpmdGraph | None) -> bool:
        return candidate is not None and time.monotonic() < last and fails(candidate)

    graph = _ends(graph, still_fails)
    size = None
    while size != (size := len(graph.graph.nodes)):
        for edit in _edits(graph):
            candidate = edit(graph)
            if candidate is not None and still_fails(candidate):
                graph = candidate
    return graph


def _ends(graph: SpmdGraph, fails: Callable[[SpmdGraph | None], bool]) -> SpmdGraph:
    """Return the part of a graph, from one value to another, that still fails."""

    def until(count: int) -> SpmdGraph | None:
        kept = {*_inputs(graph), *_computed(graph)[:count]}
        outputs = [n for n in graph.graph.nodes if n in kept and not set(n.users) <= kept]
        return rewritten(graph, [n for n in outputs if is_value(n)])

    count = _least(len(_computed(graph)), lambda count: fails(until(count)))
    if (shorter := until(count)) is not None and fails(shorter):
        graph = shorter
    whole = graph

    def since(count: int) -> SpmdGraph | None:
        cut = _computed(whole)[: len(_computed(whole)) - count]
        return rewritten(whole, _outputs(whole), filter(is_value, cut))

    count = _least(len(_computed(whole)), lambda count: fails(since(count)))
    return shorter if fails(shorter := since(count)) and shorter is not None else whole


def _least(count: int, holds: Callable[[int], bool]) -> int:
    """Return the least number from 1 for which it holds, bisected; it does for ``count``."""
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


Edit = Callable[[SpmdGraph], SpmdGraph | None]


def _edits(graph: SpmdGraph) -> Iterator[Edit]:
    """Yield what may make a graph smaller, by names: each is applied to what is left then."""
    names = [node.name for node in reversed(graph.graph.nodes) if is_value(node)]
    for name in [node.name for node in _outputs(graph)]:
        yield lambda g, name=name: _without_output(g, name)  # type: ignore[misc]
    for name in names:
        yield lambda g, name=name: _as_input(g, name)  # type: ignore[misc]
    for name in names:
        yield lambda g, name=name: _as_operand(g, name)  # type: ignore[misc]


def _without_output(graph: SpmdGraph, name: str) -> SpmdGraph | None:
    outputs = [node for node in _outputs(graph) if node.name != name]
    return rewritten(graph, outputs) if 0 < len(outputs) < len(_outputs(graph)) else None


def _as_input(graph: SpmdGraph, name: str) -> SpmdGraph | None:
    nodes = [node for node in _computed(graph) if node.name == name]
    return rewritten(graph, _outputs(graph), nodes) if nodes else None


def _as_operand(graph: SpmdGraph, name: str) -> SpmdGraph | None:
    for node in _computed(graph):
        if node.name == name:
            call = collective(node) if node.target is WAIT else None
            before = [call.operand] if call else access.computed_by(node).all_input_nodes
            alike = [x for x in before if is_value(x) and _kind(x) == _kind(node)]
            return rewritten(graph, _outputs(graph), instead={node: alike[0]}) if alike else None
    return None


def rewritten(
    graph: SpmdGraph,
    outputs: Sequence[fx.Node],
    inputs: Collection[fx.Node] | Iterator[fx.Node] = (),
    instead: Mapping[fx.Node, fx.Node] | None = None,
) -> SpmdGraph | None:
    """Return a graph of some values of another, read from its text; None if it has none.

    Args:
        graph: the other graph.
        outputs: values to return.
        inputs: values that become inputs, with the placements that they have.
        instead: value -> value that is read in its place.
    """
    cut, aliases = set(inputs), instead or {}
    outputs = [aliases.get(node, node) for node in outputs]
    needed, stack = set[fx.Node](), list(outputs)
    while stack:
        if (node := stack.pop()) not in needed:
            needed.add(node)
            stack += [] if node in cut else [aliases.get(x, x) for x in node.all_input_nodes]
    facts, target, copies = placements(graph), fx.Graph(), dict[fx.Node, fx.Node]()
    placed = dict(graph.inputs)
    for node in (n for n in graph.graph.nodes if n in needed):
        if node in cut:
            copies[node] = target.placeholder(node.name)
            copies[node].meta = dict(node.meta)
            placed[str(copies[node].target)] = facts[node]
    for node in (n for n in graph.graph.nodes if n in needed and n not in cut):
        copies[node] = target.node_copy(node, lambda x: copies[aliases.get(x, x)])
    target.output(tuple(copies[node] for node in outputs))
    names = {str(n.target) for n in target.nodes if n.op in ("placeholder", "get_attr")}
    placed = {name: placements for name, placements in placed.items() if name in names}
    try:
        return parse_graph(text_of(SpmdGraph(graph.root, target, graph.mesh, placed)))
    except CommPlanError:
        return None


def is_value(node: fx.Node) -> bool:
    """Return whether a node is a tensor that can be returned: no collective under way."""
    return access.has_result(node) and access.is_tensor(node) and node.target not in OPS


def _kind(node: fx.Node) -> object:
    return access.dtype(node), shape_key(access.value(node))


def _computed(graph: SpmdGraph) -> list[fx.Node]:
    return [node for node in graph.graph.nodes if node.op == "call_function"]


def _inputs(graph: SpmdGraph) -> list[fx.Node]:
    return [node for node in graph.graph.nodes if node.op in ("placeholder", "get_attr")]


def _outputs(graph: SpmdGraph) -> list[fx.Node]:
    return [node for node in access.results(access.output(graph.graph)) if is_value(node)]
