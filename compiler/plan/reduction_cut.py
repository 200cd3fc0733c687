"""Cut 1: where to reduce. A minimum cut over the partial values of one reduction.

Every partial value is placed Partial (label P, source side) or Replicate (R, sink side):

    P and read Replicate by somebody pay one collective for the value, once
    read by a joint all_reduce       nothing: it reduces what it gets, over both groups in case of P
    operand in R  =>  value in R     infinite edge value -> operand
    addend computed otherwise        P (infinite edge from the source)
    addend that other code reads     P
    read by anything else            R is demanded (edge of the collective's weight to the sink)

Weights compare prices first, then how far the plan departs from where the author reduces: ties keep
the author's placement.
"""

from __future__ import annotations

from compiler.analysis.partial_forms import PartialAssignment, readers
from compiler.analysis.partial_values import partial_values
from compiler.analysis.reductions import ReductionFacts
from compiler.ir import access
from compiler.plan.export import payload_parts
from compiler.plan.flow_network import NEVER, FlowNetwork
from compiler.plan.prices import Bytes, Prices

UNIT = 1 << 20
"""Weight of one unit of price; a departure from the author's placement weighs 1."""


def place_reductions(
    facts: ReductionFacts, prices: Prices | None = None, *, hoist: bool = True
) -> PartialAssignment:
    """Return the placement of ``facts.reduction`` that costs least, by the laws of its kind.

    Args:
        facts: about a graph, for one reduction.
        prices: what collectives cost; default: the bytes of tensors at their hints.
        hoist: whether an addend may be reduced before the author's all_reduce.
    """
    reduced = _network(facts, prices or Bytes(), hoist=hoist).sink_side()
    return PartialAssignment(facts, frozenset(n for n in partial_values(facts) if n not in reduced))


def _network(facts: ReductionFacts, prices: Prices, *, hoist: bool) -> FlowNetwork:
    """Return the network whose edges run from what is Partial to what is Replicate."""
    network, reduction = FlowNetwork(), facts.reduction
    for node, value in partial_values(facts).items():
        reads = readers(facts)[node]
        if not value.operands or value.pinned or (value.addend and not hoist):
            network.add_node_cost(node, sink=NEVER)
        elif value.addend:
            network.add_node_cost(node, sink=1)
        elif not value.reduces:
            network.add_node_cost(node, source=1)
        for operand in value.operands:
            network.connect(node, operand)
        weight = NEVER
        if access.is_tensor(node):
            parts = payload_parts(facts)
            once = prices.communication(reduction.collective, node, reduction.groups, parts)
            weight = UNIT * once + (not value.reduces)
        collective = ("reduction of", node)
        network.connect(node, collective, weight)
        network.add_node_cost(collective, source=NEVER if reads.others else 0)
        for reader in reads.linear:
            network.connect(collective, reader)
    return network
