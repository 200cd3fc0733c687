"""Which collectives of the optimized graph do the work of which of the source."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import fx

from compiler.analysis.replication import replicated_over, replication
from compiler.ir.collectives import WAIT, Collective, collective
from compiler.ir.graph import SpmdGraph

Links = dict[str, tuple[str, ...]]
"""Name of the result of a collective -> names of those on the other side."""


def moved(before: SpmdGraph, after: SpmdGraph) -> dict[str, Links]:
    """For each side, the collectives the other side does not have, and what stands for them.

    Nodes correspond by name. A reduction that went is found again downstream of what it added up,
    where that is still unreduced, and upstream where it is not.
    """
    sides = [_results(graph) for graph in (before, after)]
    keys = [{(w.name, c.operand.name) for w, c in found.items()} for found in sides]
    gone = {w: c for w, c in sides[0].items() if (w.name, c.operand.name) not in keys[1]}
    fresh = {w for w, c in sides[1].items() if (w.name, c.operand.name) not in keys[0]}
    twins = {node.name: node for node in after.graph.nodes}
    classes = replication(after)
    links: dict[str, Links] = {"before": {}, "after": {w.name: () for w in fresh}}
    for wait, what in gone.items():
        twin = twins.get(what.operand.name)
        found: list[fx.Node] = []
        if twin is not None:
            reduced = replicated_over(classes[twin], after.mesh.group(what.group))
            step = _operands if reduced else _users
            found = [node for node in _first_waits(twin, step) if node in fresh]
        links["before"][wait.name] = tuple(node.name for node in found)
        for node in found:
            links["after"][node.name] += (wait.name,)
    return links


def _results(graph: SpmdGraph) -> dict[fx.Node, Collective]:
    waits = (node for node in graph.graph.nodes if node.target is WAIT)
    return {node: found for node in waits if (found := collective(node)) is not None}


def _users(node: fx.Node) -> Iterable[fx.Node]:
    return node.users


def _operands(node: fx.Node) -> Iterable[fx.Node]:
    return node.all_input_nodes


def _first_waits(start: fx.Node, step: Callable[[fx.Node], Iterable[fx.Node]]) -> list[fx.Node]:
    """The waits that are met first on all ways from ``start``."""
    queue, seen, found = [start], {start}, list[fx.Node]()
    while queue:
        for node in step(queue.pop()):
            if node in seen:
                continue
            seen.add(node)
            (found if node.target is WAIT else queue).append(node)
    return found
