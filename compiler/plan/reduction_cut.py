"""Cut 1: where to reduce. A minimum cut over the carriers of one reduction.

Every carrier runs either before its reduction (label P, source side) or after it (R, sink side):

    P and read reduced by somebody   pay one collective for the carrier, once
    read by a joint all_reduce       nothing: it reduces what it gets, over both groups in case of P
    operand in R  =>  carrier in R   infinite edge carrier -> operand
    addend computed otherwise        P (infinite edge from the source)
    addend that other code reads     P
    read by anything but a carrier   R is demanded (edge of the payment's weight to the sink)

Weights compare prices first, then how far the plan departs from where the author reduces: ties keep
the author's placement.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from functools import cached_property

from torch import fx

from compiler.analysis.partial_forms import Readers, readers
from compiler.analysis.partial_values import Carrier, carriers
from compiler.analysis.reductions import Facts
from compiler.ir import access
from compiler.ir.comm_plan import PlacedReduction, Stage
from compiler.ir.graph import SpmdGraph
from compiler.ir.text import numbers
from compiler.plan.flow_network import NEVER, FlowNetwork
from compiler.plan.prices import Bytes, Prices

UNIT = 1 << 20
"""Weight of one unit of price; a departure from the author's placement weighs 1."""


class ReductionChoice:
    """What there is to choose for one reduction.

    Args:
        graph: the SPMD graph.
        known: facts about it, for the reduction.
        hoist: whether an addend may be reduced before the author's all_reduce.
    """

    def __init__(self, graph: SpmdGraph, known: Facts, *, hoist: bool = True) -> None:
        """Looks at the graph once, for any number of prices."""
        self.graph, self.known, self.hoist = graph, known, hoist
        self.found = carriers(graph, known)

    def cheapest(self, prices: Prices) -> frozenset[fx.Node]:
        """The carriers to compute before their reduction."""
        reduced = self._network(prices).sink_side()
        return frozenset(node for node in self.found if node not in reduced)

    def stage(self, unreduced: Set[fx.Node], tokens: int | None = None) -> Stage:
        """The choice as part of a plan, payloads counted at ``tokens``."""
        found, known, number = self.found, self.known, self._numbers
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
            if node in unreduced and self._readers[node].demand_reduced(unreduced)
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

    @cached_property
    def _numbers(self) -> Mapping[fx.Node, int]:
        return numbers(self.graph.graph)

    @cached_property
    def _readers(self) -> Mapping[fx.Node, Readers]:
        return {node: readers(node, self.found, self.known) for node in self.found}

    def _network(self, prices: Prices) -> FlowNetwork:
        """Edges run from what is unreduced to what is reduced."""
        network, reduction = FlowNetwork(), self.known.reduction
        for node, carrier in self.found.items():
            reads = self._readers[node]
            if not carrier.operands or carrier.pinned or (carrier.addend and not self.hoist):
                network.pay(node, sink=NEVER)
            elif carrier.addend:
                network.pay(node, sink=1)
            elif not carrier.reduces:
                network.pay(node, source=1)
            for operand in carrier.operands:
                network.connect(node, operand)
            price = NEVER
            if access.is_tensor(node):
                parts = _parts(self.known)
                once = prices.communication(reduction.collective, node, reduction.groups, parts)
                price = UNIT * once + (not carrier.reduces)
            paid = ("reduction of", node)
            network.connect(node, paid, price)
            network.pay(paid, source=NEVER if reads.others else 0)
            for reader in reads.linear:
                network.connect(paid, reader)
        return network


def place_reductions(
    graph: SpmdGraph, known: Facts, *, tokens: int | None = None, hoist: bool = True
) -> Stage:
    """The placement of ``known.reduction`` that takes the fewest bytes, by the laws of its kind.

    Args:
        graph: the SPMD graph.
        known: facts about it, for one reduction.
        tokens: value of symbolic sizes to count payloads at; None for their hints.
        hoist: whether an addend may be reduced before the author's all_reduce.
    """
    choice = ReductionChoice(graph, known, hoist=hoist)
    return choice.stage(choice.cheapest(Bytes(tokens)), tokens)


def _parts(known: Facts) -> int:
    """Payload of the reduction of a value, in sizes of its reduced form."""
    return known.reduction.groups.axis_size if known.reduction.scatters else 1


def _payload_bytes(node: fx.Node, known: Facts, tokens: int | None) -> int:
    """Bytes of the unreduced form on one rank: reduce_scatters send all ranks' rows."""
    return _parts(known) * access.payload_bytes(node, tokens)


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


__all__ = ["ReductionChoice", "place_reductions"]
