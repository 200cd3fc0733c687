"""Replication analysis: which ranks hold the same tensor, for every value.

Direction  forward, one sweep in graph order.
Domain     partitions of the ranks: a class number per rank, equal classes hold equal tensors.
           Exact for any replica groups, orthogonal, nested or irregular.
Result     node -> classes; the graph is not touched.
Refuses    nothing: an op without a rule may read its rank in secret, so every rank gets a class
           of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache

from torch import fx

from compiler.analysis.cache import cached
from compiler.ir import access
from compiler.ir.collectives import WAIT, Kind, collective
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import Mesh, ReplicaGroups
from compiler.ir.placement import Placements, Replicate
from compiler.ir.row_ops import all_slice
from compiler.ir.rules import Meaning


class Classes(tuple[int, ...]):
    """Class number of every rank, numbered by first appearance.

    Many values share few partitions: what is found out of one is kept, so that a graph takes no
    longer on many ranks than on few.
    """

    @cached_property
    def _hash(self) -> int:
        return super().__hash__()

    def __hash__(self) -> int:
        return self._hash


def numbered(labels: Iterable[Hashable]) -> Classes:
    """Class numbers of labels."""
    seen: dict[Hashable, int] = {}
    return Classes(seen.setdefault(label, len(seen)) for label in labels)


def classes_of(mesh: Mesh, placements: Placements) -> Classes:
    """Ranks that differ in replicated axes alone hold the same."""
    varying = tuple(not isinstance(placement, Replicate) for placement in placements)
    return _apart_in(tuple(mesh.axes.values()), varying)


@lru_cache(maxsize=1 << 8)
def _apart_in(sizes: tuple[int, ...], varying: tuple[bool, ...]) -> Classes:
    coordinates = itertools.product(*map(range, sizes))
    return numbered(tuple(itertools.compress(at, varying)) for at in coordinates)


@lru_cache(maxsize=1 << 12)
def replicated_over(classes: Classes, groups: ReplicaGroups) -> bool:
    """Whether the ranks of each group hold the same tensor."""
    return all(len({classes[r] for r in group}) == 1 for group in groups.ranks)


def replicated_axes(mesh: Mesh, classes: Classes) -> frozenset[str]:
    """Axes along which all ranks hold the same tensor."""
    return frozenset(a for a in mesh.axes if replicated_over(classes, mesh.groups[a]))


@cached
def replication(graph: SpmdGraph) -> Mapping[fx.Node, Classes]:
    """Classes of every value of ``graph`` but the output."""
    world = graph.mesh.size
    everyone, nobody = numbered((0,) * world), numbered(range(world))
    classes: dict[fx.Node, Classes] = {}
    met: dict[tuple[Classes, ...], Classes] = {}
    for node in graph.graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            classes[node] = classes_of(graph.mesh, graph.inputs[str(node.target)])
        elif node.target is WAIT:
            classes[node] = classes[access.operands(node)[0]]
        elif (what := collective(node)) is not None:
            src = access.arguments(node).get("src", 0)
            groups = graph.mesh.group(what.group)
            classes[node] = _after_collective(what.kind, groups, int(src), classes[what.operand])
        elif (cut := all_slice(node)) is not None:
            groups = graph.mesh.group(cut.group)
            classes[node] = _own_shares(groups, classes[cut.operand])
        elif node.op == "call_function":
            rule = graph.meanings.get(node)
            if node in graph.meanings and (rule is None or rule.random or differs(node, rule)):
                classes[node] = nobody
                continue
            read = {classes[x] for x in _read(node, rule)}
            read |= {_of_numbers(c.values) for c in access.rank_constants(node)}
            key = tuple(sorted(read - {everyone}))
            if key not in met:
                met[key] = numbered(zip(*key, strict=True)) if key else everyone
            classes[node] = met[key]
    return classes


def differs(node: fx.Node, rule: Meaning) -> bool:
    """Whether an op is another function on every rank, for other reasons than its arguments."""
    return rule.rank_dependent and not access.rank_constants(node)


def _read(node: fx.Node, rule: Meaning | None) -> Iterable[fx.Node]:
    """What the value depends on: an op that is a sum of terms reads what they name, no more."""
    reads = None if rule is None else rule.reads
    if reads is None:
        return node.all_input_nodes
    operands = access.operands(node)
    return [operands[i] for i in reads]


@lru_cache(maxsize=1 << 8)
def _of_numbers(values: tuple[object, ...]) -> Classes:
    return numbered(values)


@lru_cache(maxsize=1 << 8)
def _own_shares(groups: ReplicaGroups, operand: Classes) -> Classes:
    return numbered(zip(operand, map(groups.position.get, range(len(operand))), strict=True))


@lru_cache(maxsize=1 << 8)
def _after_collective(kind: Kind, groups: ReplicaGroups, src: int, operand: Classes) -> Classes:
    def content(group: Sequence[int]) -> tuple[int, ...]:
        in_order = tuple(operand[r] for r in group)
        if kind is Kind.BROADCAST:
            return (in_order[src],)
        adds = kind in (Kind.ALL_REDUCE, Kind.REDUCE_SCATTER)
        return tuple(sorted(in_order)) if adds else in_order

    deals = kind in (Kind.REDUCE_SCATTER, Kind.ALL_TO_ALL)
    labels = {
        rank: (number, position if deals else 0)
        for number, group in zip(numbered(map(content, groups.ranks)), groups.ranks, strict=True)
        for position, rank in enumerate(group)
    }
    return numbered(labels[rank] for rank in range(len(operand)))
