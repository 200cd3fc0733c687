"""Carrier analysis: which values stand for a sum over ranks, reduced or not yet.

For one reduction (replica groups and kind), a *carrier* is a value v with two forms: unreduced,
U(v), one addend per rank, and reduced, S(v), the sum of U(v) over the group. Carriers are

    an all_reduce of x                    S is the node itself, U is U(x)
    a linear op of carriers               S(f(x)) = f(S(x)),  U(f(x)) = f(U(x))
    what an all_reduce or carrier adds up U is the node itself (``addend``)

Direction  backward from all_reduces for addends, then forward.
Result     node -> Carrier; the graph is not touched.
Refuses    an op that is not linear in its carriers, with the reason (``refusal``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from torch import fx

from compiler.analysis.replication import Classes, replicated_over, replication
from compiler.ir import access
from compiler.ir.collectives import OPS, WAIT, Kind, collective
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import ReplicaGroups
from compiler.ir.rules import Term

LINEAR_KINDS = ("sum", "avg")
"""Reductions that distribute over addition and commute with linear maps."""


@dataclass(frozen=True)
class Reduction:
    """Which ranks reduce, and how; ``group`` is the name that the graph uses first."""

    group: str
    kind: str
    groups: ReplicaGroups


@dataclass(frozen=True)
class Carrier:
    """A value that stands for a sum over ranks.

    Attributes:
        operands: the carriers it is linear in; none for an addend computed otherwise.
        addend: the graph holds U (before its all_reduce), not S.
        reduces: the node is an all_reduce, the identity on carriers.
        pinned: an addend that other code reads as it is, so that it must be computed unreduced.
    """

    operands: tuple[fx.Node, ...]
    addend: bool
    reduces: bool = False
    pinned: bool = False


@dataclass(frozen=True, eq=False)
class Facts:
    """What is known about every value for one reduction."""

    graph: SpmdGraph
    classes: Mapping[fx.Node, Classes]
    zeros: frozenset[fx.Node]
    reduction: Reduction

    def replicated(self, node: fx.Node) -> bool:
        """Whether the ranks of each group hold the same."""
        return replicated_over(self.classes[node], self.reduction.groups)


def reductions(graph: SpmdGraph) -> tuple[Reduction, ...]:
    """The linear reductions of the graph's all_reduces, one per set of groups and kind."""
    found: dict[tuple[ReplicaGroups, str], Reduction] = {}
    for node in graph.graph.nodes:
        what = collective(node) if node.target in OPS else None
        if what is not None and what.kind is Kind.ALL_REDUCE and what.op in LINEAR_KINDS:
            groups = graph.mesh.group(what.group)
            found.setdefault((groups, what.op), Reduction(what.group, what.op, groups))
    return tuple(found.values())


@lru_cache(maxsize=2)  # planner and pass ask about the same graph
def facts(graph: SpmdGraph, reduction: Reduction) -> Facts:
    """Replication and zeros."""
    return Facts(graph, replication(graph), zeros(graph), reduction)


def zeros(graph: SpmdGraph) -> frozenset[fx.Node]:
    """Values that are zero everywhere, on every rank: every term has a factor that is zero."""
    found: set[fx.Node] = set()
    for node, rule in graph.meanings.items():
        if rule is None or rule.terms is None:
            continue
        read = access.operands(node)
        if all(any(read[i] in found for i in term.operands) for term in rule.terms):
            found.add(node)
    return frozenset(found)


def is_reduction(graph: SpmdGraph, node: fx.Node, reduction: Reduction) -> bool:
    """Whether ``node`` is the result of an all_reduce of this kind over these groups."""
    what = collective(node) if node.target is WAIT else None
    return (
        what is not None
        and what.kind is Kind.ALL_REDUCE
        and what.op == reduction.kind
        and graph.mesh.group(what.group) == reduction.groups
    )


def addend(node: fx.Node) -> fx.Node:
    """What the all_reduce with result ``node`` adds up."""
    what = collective(node)
    assert what is not None, f"%{node.name} is no collective"
    return what.operand


def refusal(node: fx.Node, partial: Sequence[fx.Node], known: Facts) -> str | None:
    """Why ``node`` may not be computed on unreduced ``partial`` operands; None if it may."""
    rule = known.graph.meanings.get(node)
    if rule is None:
        return f"{node.target} has no rule"
    if rule.casts:
        return f"{node.target} changes the element type"
    if rule.terms is None:
        return f"{node.target} is not linear"
    if access.rank_constants(node):
        return f"{node.target} takes a number that depends on the rank"
    reasons = (_term_refusal(node, term, partial, known) for term in rule.terms)
    return next((why for why in reasons if why), None)


def _term_refusal(
    node: fx.Node, term: Term, partial: Sequence[fx.Node], known: Facts
) -> str | None:
    read = access.operands(node)
    factors, fixed = ([read[i] for i in held] for held in (term.operands, term.fixed))
    if any(x in known.zeros for x in factors):
        return None
    if any(x in partial for x in fixed):
        return f"{node.target} is not linear in what it depends on"
    match sum(x in partial for x in factors):
        case 0:
            what = f"%{factors[0].name}" if factors else "a constant"
            return f"{node.target} adds {what}, which is not a partial sum"
        case 1:
            varying = [x for x in (*factors, *fixed) if x not in partial]
            bad = [x for x in varying if not known.replicated(x)]
            if not bad:
                return None
            return f"{node.target} depends on %{bad[0].name}, which differs between ranks"
        case _:
            return f"{node.target} multiplies partial sums"


@lru_cache(maxsize=2)
def carriers(graph: SpmdGraph, known: Facts) -> Mapping[fx.Node, Carrier]:
    """All carriers of ``known.reduction``, in graph order."""
    found: dict[fx.Node, Carrier] = {}
    sums = {
        node: None  # a set in graph order
        for node in graph.graph.nodes
        if is_reduction(graph, node, known.reduction) and not known.replicated(addend(node))
    }
    _find_addends(sums, known, found)
    for node in graph.graph.nodes:
        if node in found or node.op != "call_function":
            continue
        if node in sums:
            found[node] = Carrier((addend(node),), addend=False, reduces=True)
            continue
        partial = [x for x in access.operands(node) if x in found and not found[x].addend]
        if partial and access.is_operand(node) and refusal(node, partial, known) is None:
            found[node] = Carrier(tuple(dict.fromkeys(partial)), addend=False)
    order = {node: i for i, node in enumerate(graph.graph.nodes)}
    return dict(sorted(found.items(), key=lambda item: order[item[0]]))


def _find_addends(
    sums: Mapping[fx.Node, None], known: Facts, found: dict[fx.Node, Carrier]
) -> None:
    """The addends of ``sums``, and what they are linear in, as far back as linearity reaches."""
    queue = [addend(node) for node in sums]
    linear_in: dict[fx.Node, tuple[fx.Node, ...]] = {}
    while queue:
        node = queue.pop()
        if node in linear_in:
            continue
        partial = [x for x in access.operands(node) if not known.replicated(x)]
        is_call = node.op == "call_function" and node.target is not WAIT
        linear = bool(partial) and is_call and refusal(node, partial, known) is None
        linear_in[node] = tuple(dict.fromkeys(partial)) if linear else ()
        queue += linear_in[node]
    for node, operands in linear_in.items():
        readers = [u for u in node.users if node not in linear_in.get(u, ())]
        pinned = any(
            not (u.target in OPS and (w := collective(u)) is not None and w.result in sums)
            for u in readers
        )
        found[node] = Carrier(operands, addend=True, pinned=pinned)


__all__ = [
    "Carrier",
    "Facts",
    "Reduction",
    "addend",
    "carriers",
    "facts",
    "is_reduction",
    "reductions",
    "refusal",
    "zeros",
]
