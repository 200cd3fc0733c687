"""Partial values: which values stand for a reduction over ranks, done or not yet.

For one reduction (replica groups and kind), a *partial value* is a value v that may be Partial or
Replicate. Partial, P(v), is one part per rank; Replicate, R(v), is the reduction of P(v) over the
group; written here for sums. Partial values are

    an all_reduce of x                   R is the node itself, P is P(x)
    a linear op of partial values        R(f(x)) = f(R(x)),  P(f(x)) = f(P(x))
    what an all_reduce of these adds up  P is the node itself (``addend``)

The same holds for max, min and product, and the ops that commute with them. For reduce_scatters, R
is this rank's block of rows, P has as many times the rows as there are ranks, and f treats rows
alike.

Direction  backward from all_reduces for addends, then forward.
Result     node -> PartialValue; the graph is not touched.
Refuses    an op that does not commute with the reduction, see ``compiler.analysis.linearity``; to
           reduce the addends of reduce_scatters, or of widening casts, earlier than the author.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

from torch import fx

from compiler.analysis.cache import cached
from compiler.analysis.linearity import why_not_linear
from compiler.analysis.reductions import ReductionFacts, is_reduction, joint_groups, reads_shape
from compiler.analysis.traversal import reached
from compiler.ir import access
from compiler.ir.collectives import OPS, WAIT, collective


@dataclass(frozen=True)
class PartialValue:
    """A value that stands for a reduction over ranks.

    Attributes:
        operands: the partial values it is linear in; none for an addend computed otherwise.
        addend: the graph holds it Partial, before its reduction.
        reduces: the node is the result of the reduction, the identity on partial values.
        pinned: an addend that other code reads as it is, so that it must stay Partial.
        joint: all_reduces of it over orthogonal groups, which may reduce P over both instead of R.
    """

    operands: tuple[fx.Node, ...]
    addend: bool
    reduces: bool = False
    pinned: bool = False
    joint: tuple[fx.Node, ...] = ()


PartialValues = Mapping[fx.Node, PartialValue]


def addend(node: fx.Node) -> fx.Node:
    """Return what the all_reduce with result ``node`` adds up."""
    reduction = collective(node)
    assert reduction is not None, f"%{node.name} is not a collective"
    return reduction.operand


@cached
def partial_values(facts: ReductionFacts) -> PartialValues:
    """Return all partial values of ``facts.reduction``, in graph order."""
    graph, values = facts.graph, dict[fx.Node, PartialValue]()
    sums = {
        node: None  # a set in graph order
        for node in graph.graph.nodes
        if is_reduction(graph, node, facts.reduction) and not facts.replicated(addend(node))
    }
    _add_addends(values, sums, facts)
    for node in graph.graph.nodes:
        if node in values or node.op != "call_function":
            continue
        if node in sums:
            values[node] = PartialValue((addend(node),), addend=False, reduces=True)
            continue
        partial = [x for x in access.operands(node) if x in values and not values[x].addend]
        if partial and access.is_operand(node) and why_not_linear(node, partial, facts) is None:
            values[node] = PartialValue(tuple(dict.fromkeys(partial)), addend=False)

    def joint(node: fx.Node) -> tuple[fx.Node, ...]:
        users = () if values[node].addend else node.users
        return tuple(user for user in users if joint_groups(user, facts))

    return {node: replace(values[node], joint=joint(node)) for node in sorted(values)}


def _add_addends(
    values: dict[fx.Node, PartialValue], sums: Mapping[fx.Node, None], facts: ReductionFacts
) -> None:
    """Add the addends of ``sums``, and what they are linear in, as far as reductions may move back.

    A value is pinned by what reads its elements, not by what reads its shape.
    """
    linear_in: dict[fx.Node, tuple[fx.Node, ...]] = {}

    def operands_of(node: fx.Node) -> tuple[fx.Node, ...]:
        partial = [x for x in access.operands(node) if not facts.replicated(x)]
        is_call = node.op == "call_function" and node.target is not WAIT
        rule = facts.graph.meanings.get(node)
        fixed = facts.reduction.scatters or (rule is not None and rule.casts)
        linear = bool(partial) and is_call and not fixed
        linear = linear and why_not_linear(node, partial, facts) is None
        linear_in[node] = tuple(dict.fromkeys(partial)) if linear else ()
        return linear_in[node]

    reached(map(addend, sums), operands_of)
    for node, operands in linear_in.items():
        readers = [u for u in node.users if node not in linear_in.get(u, ())]
        pinned = any(
            not (u.target in OPS and (w := collective(u)) is not None and w.result in sums)
            for u in readers
            if not reads_shape(u)
        )
        values[node] = PartialValue(operands, addend=True, pinned=pinned)


def exclusive_reduced_size(
    value: fx.Node, values: PartialValues, size: Callable[[fx.Node], int]
) -> Fraction:
    """Return a lower bound on what must be reduced for ``value`` alone, for any placement.

    A partial value is reduced itself, or all that it is linear in is: the least that takes is a
    minimum cut of the cone above it, in which nodes have their size as capacity. What values
    outside the cone read reduced costs nothing more. The bound is a flow, which no cut is less
    than: what several values of the cone read is divided between them in equal parts. It is the
    cut wherever that loses nothing, as in trees.

    Args:
        value: one of ``values``.
        values: those of one reduction.
        size: what a tensor counts as, bytes or elements.
    """
    cone = reached([value], lambda node: values[node].operands)
    uses = Counter(x for node in cone for x in values[node].operands)
    flow: dict[fx.Node, Fraction] = {}
    for node in sorted(cone):
        operands, flow[node] = values[node].operands, Fraction(0)
        if values[node].addend or sum(not reads_shape(user) for user in node.users) == 1:
            below = sum((flow[x] / uses[x] for x in operands), Fraction(0))
            own = Fraction(size(node)) if access.is_tensor(node) else below
            flow[node] = min(own, below) if operands else own
    return flow[value]
