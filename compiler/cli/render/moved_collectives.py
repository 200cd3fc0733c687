"""Which collectives of the optimized graph do the work of which of the source."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import fx

from compiler.analysis.replication import replicated_over, replication
from compiler.ir.collectives import WAIT, collective
from compiler.ir.graph import SpmdGraph

Links = dict[str, tuple[str, ...]]
"""Key of a collective -> keys of those on the other side."""


def key(node: fx.Node) -> str:
    """What a value is called on both sides: its name, or what a collective does to which value."""
    found = collective(node)
    if found is None:
        return node.name
    return f"{found.kind} {found.op} over {found.group} of {found.operand.name}"


def moved(before: SpmdGraph, after: SpmdGraph) -> dict[str, Links]:
    """For each side, the collectives the other side does not have, and what stands for them.

    A reduction that went is found again downstream of what it added up, where that is still
    Partial, and upstream where it is not.
    """
    sides = [
        {key(node): node for node in graph.graph.nodes if node.target is WAIT}
        for graph in (before, after)
    ]
    gone, fresh = sides[0].keys() - sides[1].keys(), sides[1].keys() - sides[0].keys()
    twins = {node.name: node for node in after.graph.nodes}
    classes = replication(after)
    links: dict[str, Links] = {"before": {}, "after": dict.fromkeys(sorted(fresh), ())}
    for name in (n for n in sides[0] if n in gone):
        what = collective(sides[0][name])
        assert what is not None, f"{name} is no collective"
        found: list[str] = []
        if (twin := twins.get(what.operand.name)) is not None:
            reduced = replicated_over(classes[twin], after.mesh.group(what.group))
            met = map(key, _first_waits(twin, _operands if reduced else _users))
            found = [other for other in met if other in fresh]
        links["before"][name] = tuple(found)
        for other in found:
            links["after"][other] += (name,)
    return links


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
