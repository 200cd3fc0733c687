"""Replicas of a parallel model, each with inputs of its own.

Along an axis over which an argument varies, what ranks compute is compared with what one device
computes from the same argument. Ranks that never exchange anything are models of their own; so
where no collective joins ranks of two replicas, each replica is compared by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx

from compiler.check.single_device.layouts import Declared
from compiler.check.verdict import UnprovedError
from compiler.ir import access
from compiler.ir.collectives import collectives
from compiler.ir.graph import SpmdGraph
from compiler.ir.graph_copy import GraphCopy
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Varying


def replicated_axes(declared: Mapping[str, Declared]) -> set[str]:
    """Return the axes over which inputs vary, each replica's being its own."""
    by_axis = [own for own in declared.values() if isinstance(own, Mapping)]
    return {axis for own in by_axis for axis, p in own.items() if isinstance(p, Varying)}


def replicas(graph: SpmdGraph, axes: set[str]) -> list[SpmdGraph]:
    """Return the models of ranks that agree along ``axes``; of models that are the same, one.

    Raises:
        UnprovedError: ranks of several replicas communicate.
    """
    mesh = graph.mesh
    rest = {axis: n for axis, n in mesh.axes.items() if axis not in axes}
    different: dict[tuple[Any, ...], SpmdGraph] = {}
    for members in mesh.along(*rest).ranks:
        groups = {
            one.group: _inside(node, mesh.group(one.group).ranks, members)
            for node, one in collectives(graph.graph)
        }
        numbers = [
            tuple(access.on_rank(x, r) for r in members)
            for node in graph.graph.nodes
            for x in access.rank_constants(node)
        ]
        key = (tuple(sorted(groups.items())), tuple(numbers))
        if key not in different:
            different[key] = _replica(graph, members, Mesh(rest or dict.fromkeys(axes, 1), groups))
    return list(different.values())


def _inside(
    node: fx.Node, groups: Sequence[Sequence[int]], members: Sequence[int]
) -> tuple[tuple[int, ...], ...]:
    """Return the groups of ``members``, numbered as there."""
    own = [group for group in groups if not set(group).isdisjoint(members)]
    if not all(set(group) <= set(members) for group in own):
        raise UnprovedError(
            f"%{node.name} joins ranks of several replicas, whose inputs are declared to vary"
        )
    return tuple(tuple(members.index(r) for r in group) for group in own)


def _replica(graph: SpmdGraph, members: Sequence[int], mesh: Mesh) -> SpmdGraph:
    """Return the graph as some of the ranks run it."""

    def own(item: Any) -> Any:
        if not isinstance(item, access.RankNumber):
            return item
        values = tuple(item.values[r] for r in members)
        return values[0] if len(set(values)) == 1 else type(item)(values[0], values)

    copy = GraphCopy()
    copy.add_all(graph.graph.nodes)
    for node in copy.target.nodes:
        node.args = fx.node.map_aggregate(node.args, own)
        node.kwargs = fx.node.map_aggregate(node.kwargs, own)
    kept = [i for i, axis in enumerate(graph.mesh.axes) if axis in mesh.axes]
    inputs = {name: tuple(placed[i] for i in kept) for name, placed in graph.inputs.items()}
    return SpmdGraph(graph.root, copy.target, mesh, inputs)


def of_one(declared: Mapping[str, Declared], axes: set[str]) -> dict[str, Declared]:
    """Return what is declared of a replica's inputs."""
    within: dict[str, Declared] = {}
    for name, own in declared.items():
        if isinstance(own, Mapping):
            own = {axis: p for axis, p in own.items() if axis not in axes}
        if own != {}:
            within[name] = own
    return within
