"""The reductions of a graph, and what is known about its values for one of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from compiler.analysis.cache import cached
from compiler.analysis.replication import Classes, replicated_over, replication
from compiler.ir import access
from compiler.ir.collectives import OPS, WAIT, Kind, collective
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import ReplicaGroups, product

LINEAR_KINDS = ("sum", "avg")
"""Reductions that distribute over addition and commute with linear maps."""

SELECTIVE_KINDS = ("max", "min", "product")
"""Reductions that commute with selections of elements."""


@dataclass(frozen=True)
class Reduction:
    """Which ranks reduce, and how; equal whatever their groups are called.

    Attributes:
        group: the name that the graph uses first.
        kind: as in ``LINEAR_KINDS`` and ``SELECTIVE_KINDS``.
        groups: the ranks behind the name.
        scatters: each rank gets its block of rows (reduce_scatter), not everything (all_reduce).
    """

    group: str = field(compare=False)
    kind: str
    groups: ReplicaGroups
    scatters: bool = False

    @property
    def collective(self) -> Kind:
        """The collective that does it."""
        return Kind.REDUCE_SCATTER if self.scatters else Kind.ALL_REDUCE

    @property
    def partial(self) -> str:
        """What a value is called that is not reduced yet."""
        return f"partial {'sum' if self.kind in LINEAR_KINDS else self.kind}"


@dataclass(frozen=True, eq=False)
class ReductionFacts:
    """Facts about every value of a graph for one of its reductions, and what is allowed to it.

    Attributes:
        allow_dtype_widening: it may cross widening casts.
        allow_new_groups: it may become one with an all_reduce over groups orthogonal to its own,
            even if the mesh has no name for both together.
        analyses: results of analyses for this reduction.
    """

    graph: SpmdGraph
    classes: Mapping[fx.Node, Classes]
    zeros: frozenset[fx.Node]
    reduction: Reduction
    allow_dtype_widening: bool = False
    allow_new_groups: bool = True
    analyses: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    def replicated(self, node: fx.Node) -> bool:
        """Whether the ranks of each group hold the same."""
        return replicated_over(self.classes[node], self.reduction.groups)


def reduction_of(graph: SpmdGraph, node: fx.Node) -> Reduction | None:
    """The reduction that ``node`` starts or whose result it is, None for all other nodes."""
    what = collective(node) if node.target in OPS or node.target is WAIT else None
    if what is None or what.op not in (*LINEAR_KINDS, *SELECTIVE_KINDS):
        return None
    if what.op == "avg" and not access.dtype(what.operand).is_floating_point:
        return None  # whole numbers are divided with a remainder: no law holds
    scatters = what.kind is Kind.REDUCE_SCATTER
    return Reduction(what.group, what.op, graph.mesh.group(what.group), scatters)


def number_of(graph: SpmdGraph) -> Counter[Reduction]:
    """Return how many collectives of the graph do each of its reductions, in graph order."""
    starts = (reduction_of(graph, node) for node in graph.graph.nodes if node.target in OPS)
    return Counter(reduction for reduction in starts if reduction is not None)


def reductions(graph: SpmdGraph) -> tuple[Reduction, ...]:
    """Return the reductions of the graph, one per collective, set of groups and kind."""
    return tuple(number_of(graph))


def is_reduction(graph: SpmdGraph, node: fx.Node, reduction: Reduction) -> bool:
    """Whether ``node`` is the result of this reduction."""
    return node.target is WAIT and reduction_of(graph, node) == reduction


def joint_groups(node: fx.Node, facts: ReductionFacts) -> ReplicaGroups | None:
    """The groups over which the all_reduce ``node`` could reduce what is not reduced yet.

    None if ``node`` starts no all_reduce of the same kind over groups orthogonal to it.
    """
    other, mine = reduction_of(facts.graph, node) if node.target in OPS else None, facts.reduction
    if other is None or other.scatters or mine.scatters or other.kind != mine.kind:
        return None
    groups = product(mine.groups, other.groups)
    named = groups and (facts.allow_new_groups or facts.graph.mesh.name_of(groups))
    return groups if named else None


@cached
def reduction_facts(
    graph: SpmdGraph,
    reduction: Reduction,
    allow_dtype_widening: bool = False,
    allow_new_groups: bool = True,
) -> ReductionFacts:
    """Return the facts about ``graph`` for one reduction; see ``ReductionFacts`` for options."""
    classes, zero = replication(graph), zeros(graph)
    return ReductionFacts(graph, classes, zero, reduction, allow_dtype_widening, allow_new_groups)


@cached
def zeros(graph: SpmdGraph) -> frozenset[fx.Node]:
    """Values that are zero everywhere, on every rank: every term has a factor that is zero."""
    zero: set[fx.Node] = set()
    for node, rule in graph.meanings.items():
        if rule is None or rule.terms is None:
            continue
        read = access.operands(node)
        if all(any(read[i] in zero for i in term.operands) for term in rule.terms):
            zero.add(node)
    return frozenset(zero)


def reads_shape(node: fx.Node) -> bool:
    """Whether ``node`` computes a number from the shapes of what it reads, not from elements."""
    return node.op == "call_function" and access.has_result(node) and not access.is_operand(node)
