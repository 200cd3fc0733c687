"""Cut 1: where to reduce. A minimum cut over the carriers of one reduction.

Every carrier runs either before its reduction (label P, source side) or after it (R, sink side):

    P and read reduced by somebody   pay one collective for the carrier, once
    read by a joint all_reduce       nothing: it reduces what it gets, over both groups in case of P
    operand in R  =>  carrier in R   infinite edge carrier -> operand
    addend computed otherwise        P (infinite edge from the source)
    addend that other code reads     P
    read by anything but a carrier   R is demanded (edge of the payment's weight to the sink)

Weights are integers. They compare payload bytes first, then the number of collectives, then how
far the plan departs from where the author reduces: ties keep the author's placement.
"""

from __future__ import annotations

from collections.abc import Mapping

import networkx as nx
from torch import fx

from compiler.analysis.carriers import Carrier, carriers
from compiler.analysis.reductions import Facts, reads_shape
from compiler.ir import access
from compiler.ir.graph import SpmdGraph
from compiler.ir.text import numbers
from compiler.plan.comm_plan import PlacedReduction, Stage

SOURCE, SINK = "unreduced", "reduced"

LAUNCH = 1 << 20
"""Weight of one collective; a departure from the author's placement weighs 1."""

BYTE = 1 << 40
"""Weight of one payload byte."""


def place_reductions(
    graph: SpmdGraph, known: Facts, *, tokens: int | None = None, hoist: bool = True
) -> Stage:
    """The cheapest placement of ``known.reduction``, by the laws of its kind.

    Args:
        graph: the SPMD graph.
        known: facts about it, for one reduction.
        tokens: value of symbolic sizes to count payloads at; None for their hints.
        hoist: whether an addend may be reduced before the author's all_reduce.
    """
    found = carriers(graph, known)
    unreduced = _unreduced(found, known, tokens, hoist=hoist)
    number = numbers(graph.graph)
    sums = [n for n in found if found[n].reduces]
    placed = tuple(
        PlacedReduction(
            value=number[_real(node, found)],
            op=str(_real(node, found).target),
            layer=access.layer_path(_real(node, found)),
            payload_bytes=_payload_bytes(node, known, tokens),
            merges=_merges(node, found),
        )
        for node in found
        if node in unreduced and demanded(node, found, unreduced, known)
    )
    return Stage(
        group=known.reduction.group,
        kind=known.reduction.kind,
        unreduced=tuple(sorted({number[n] for n in unreduced})),
        reductions=placed,
        before=len(sums),
        before_payload_bytes=sum(_payload_bytes(n, known, tokens) for n in sums),
        scatters=known.reduction.scatters,
        widen=known.widen,
        join=known.join,
    )


def _payload_bytes(node: fx.Node, known: Facts, tokens: int | None) -> int:
    """Bytes of the unreduced form on one rank: reduce_scatters send all ranks' rows."""
    times = known.reduction.groups.axis_size if known.reduction.scatters else 1
    return times * access.payload_bytes(node, tokens)


def _real(node: fx.Node, found: Mapping[fx.Node, Carrier]) -> fx.Node:
    """The op whose result is reduced: an all_reduce stands for its addend."""
    while found[node].reduces:
        (node,) = found[node].operands
    return node


def _merges(node: fx.Node, found: Mapping[fx.Node, Carrier]) -> int:
    """How many of the author's all_reduces meet, unreduced, in ``node``."""
    seen: set[fx.Node] = set()
    queue = [node]
    while queue:
        at = queue.pop()
        if at not in seen:
            seen.add(at)
            queue += () if found[at].reduces else found[at].operands
    return sum(found[n].reduces for n in seen)


def readers(
    node: fx.Node, found: Mapping[fx.Node, Carrier], known: Facts
) -> tuple[list[fx.Node], bool]:
    """Carriers linear in ``node``, and whether anything else needs the form the graph holds.

    Joint all_reduces take either form. So does what reads the shape, where both have the same.
    """
    linear: list[fx.Node] = []
    others = False
    for user in node.users:
        if user in found[node].joint or (reads_shape(user) and not known.reduction.scatters):
            continue
        reads = next((w for w in user.users if w in found and found[w].reduces), user)
        if reads in found and node in found[reads].operands:
            linear.append(reads)
        else:
            others = True
    return linear, others


def demanded(
    node: fx.Node, found: Mapping[fx.Node, Carrier], unreduced: set[fx.Node], known: Facts
) -> bool:
    """Whether the reduced form of ``node`` is read, given what runs unreduced."""
    linear, others = readers(node, found, known)
    return (others and not found[node].addend) or any(c not in unreduced for c in linear)


def _unreduced(
    found: Mapping[fx.Node, Carrier], known: Facts, tokens: int | None, *, hoist: bool
) -> set[fx.Node]:
    """Source side of the minimum cut."""
    network: nx.DiGraph[object] = nx.DiGraph()
    network.add_nodes_from((SOURCE, SINK))
    for node, carrier in found.items():
        linear, others = readers(node, found, known)
        if not carrier.operands or carrier.pinned or (carrier.addend and not hoist):
            network.add_edge(SOURCE, node)
        elif carrier.addend:
            network.add_edge(SOURCE, node, capacity=1)
        elif not carrier.reduces:
            network.add_edge(node, SINK, capacity=1)
        for operand in carrier.operands:
            network.add_edge(node, operand)
        paid = ("reduction of", node)
        if access.is_tensor(node):
            weight = BYTE * _payload_bytes(node, known, tokens) + LAUNCH + (not carrier.reduces)
            network.add_edge(node, paid, capacity=weight)
        else:
            network.add_edge(node, paid)
        if others and not carrier.addend:
            network.add_edge(paid, SINK)
        for reader in linear:
            network.add_edge(paid, reader)
    _, (before, _) = nx.minimum_cut(network, SOURCE, SINK)
    return {node for node in found if node in before}


__all__ = ["demanded", "place_reductions", "readers"]
