"""Carrier analysis: which values stand for a reduction over ranks, done or not yet.

For one reduction (replica groups and kind), a *carrier* is a value v with two forms: unreduced,
U(v), one part per rank, and reduced, S(v), the reduction of U(v) over the group; written here for
sums. Carriers are

    an all_reduce of x                    S is the node itself, U is U(x)
    a linear op of carriers               S(f(x)) = f(S(x)),  U(f(x)) = f(U(x))
    what an all_reduce or carrier adds up U is the node itself (``addend``)

The same holds for max, min and product, and the ops that commute with them. For reduce_scatters, S
is this rank's block of rows, U has as many times the rows as there are ranks, and f treats rows
alike.

Direction  backward from all_reduces for addends, then forward.
Result     node -> Carrier; the graph is not touched.
Refuses    an op that does not commute with the reduction, see ``compiler.analysis.linearity``; to
           reduce the addends of reduce_scatters, or of widening casts, earlier than the author.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import fx

from compiler.analysis.cache import cached
from compiler.analysis.linearity import refusal
from compiler.analysis.reductions import (
    Facts,
    is_reduction,
    joint_groups,
    reads_shape,
)
from compiler.ir import access
from compiler.ir.collectives import OPS, WAIT, collective
from compiler.ir.graph import SpmdGraph


@dataclass(frozen=True)
class Carrier:
    """A value that stands for a reduction over ranks.

    Attributes:
        operands: the carriers it is linear in; none for an addend computed otherwise.
        addend: the graph holds U (before its reduction), not S.
        reduces: the node is the result of the reduction, the identity on carriers.
        pinned: an addend that other code reads as it is, so that it must be computed unreduced.
        joint: all_reduces of it over orthogonal groups, which may reduce U over both instead of S.
    """

    operands: tuple[fx.Node, ...]
    addend: bool
    reduces: bool = False
    pinned: bool = False
    joint: tuple[fx.Node, ...] = ()


def addend(node: fx.Node) -> fx.Node:
    """What the all_reduce with result ``node`` adds up."""
    what = collective(node)
    assert what is not None, f"%{node.name} is no collective"
    return what.operand


@cached
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
    for node, carrier in found.items():
        users = () if carrier.addend else node.users
        joint = tuple(u for u in users if joint_groups(u, known))
        found[node] = replace(carrier, joint=joint) if joint else carrier
    order = {node: i for i, node in enumerate(graph.graph.nodes)}
    return dict(sorted(found.items(), key=lambda item: order[item[0]]))


def _find_addends(
    sums: Mapping[fx.Node, None], known: Facts, found: dict[fx.Node, Carrier]
) -> None:
    """The addends of ``sums``, and what they are linear in, as far back as reductions may move.

    A value is pinned by what reads its elements, not by what reads its shape.
    """
    queue = [addend(node) for node in sums]
    linear_in: dict[fx.Node, tuple[fx.Node, ...]] = {}
    while queue:
        node = queue.pop()
        if node in linear_in:
            continue
        partial = [x for x in access.operands(node) if not known.replicated(x)]
        is_call = node.op == "call_function" and node.target is not WAIT
        rule = known.graph.meanings.get(node)
        fixed = known.reduction.scatters or (rule is not None and rule.casts)
        linear = bool(partial) and is_call and not fixed
        linear = linear and refusal(node, partial, known) is None
        linear_in[node] = tuple(dict.fromkeys(partial)) if linear else ()
        queue += linear_in[node]
    for node, operands in linear_in.items():
        readers = [u for u in node.users if node not in linear_in.get(u, ())]
        pinned = any(
            not (u.target in OPS and (w := collective(u)) is not None and w.result in sums)
            for u in readers
            if not reads_shape(u)
        )
        found[node] = Carrier(operands, addend=True, pinned=pinned)
