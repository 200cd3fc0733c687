"""Brute force: where reductions may be, and what that costs, with no network in it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Set

from torch import fx

from compiler.analysis.partial_values import Carrier
from compiler.analysis.reductions import Facts, facts, reductions
from compiler.ir.graph import SpmdGraph
from compiler.plan.prices import Prices


def known_of(graph: SpmdGraph) -> Iterator[Facts]:
    for reduction in reductions(graph):
        yield facts(graph, reduction)


def forced(carrier: Carrier, *, hoist: bool) -> bool:
    """Whether a carrier exists unreduced only."""
    return not carrier.operands or carrier.pinned or (carrier.addend and not hoist)


def labelings(found: Mapping[fx.Node, Carrier], *, hoist: bool) -> Iterator[set[fx.Node]]:
    """All sets of unreduced carriers such that operands of unreduced ones are unreduced."""
    free = [n for n, c in found.items() if not forced(c, hoist=hoist)]
    always = {n for n, c in found.items() if forced(c, hoist=hoist)}
    for bits in itertools.product((False, True), repeat=len(free)):
        unreduced = always | {n for n, bit in zip(free, bits, strict=True) if bit}
        if all(x in unreduced for n in unreduced for x in found[n].operands):
            yield unreduced


def reads_reduced(node: fx.Node, found: Mapping[fx.Node, Carrier], unreduced: set[fx.Node]) -> bool:
    """Whether anything reads the reduced form of ``node``; joint all_reduces need not."""
    if any(node in found[r].operands and r not in unreduced for r in found):
        return True
    if found[node].addend:  # what is no carrier reads the addend itself
        return False
    return any(
        user not in found or node not in found[user].operands
        for user in node.users
        if user not in found[node].joint
        if not any(w in found and found[w].reduces for w in user.users)
    )


def weight(
    known: Facts, found: Mapping[fx.Node, Carrier], unreduced: Set[fx.Node], prices: Prices
) -> tuple[int, int]:
    """Price, and how far the labeling is from the author's."""
    price = departures = 0
    reduction = known.reduction
    parts = reduction.groups.axis_size if reduction.scatters else 1
    for node, carrier in found.items():
        if node in unreduced and reads_reduced(node, found, unreduced):
            price += prices.communication(reduction.collective, node, reduction.groups, parts)
            departures += not carrier.reduces
        author_unreduced = carrier.addend
        if not carrier.reduces and (node in unreduced) is not author_unreduced:
            departures += 1
    return price, departures
