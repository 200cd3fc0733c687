"""Brute force: where reductions may be, and what that costs, with no network in it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Set

from torch import fx

from compiler.analysis.partial_values import PartialValue, PartialValues
from compiler.analysis.reductions import ReductionFacts, reduction_facts, reductions
from compiler.ir.graph import SpmdGraph
from compiler.plan.prices import Prices


def facts_of(graph: SpmdGraph) -> Iterator[ReductionFacts]:
    for reduction in reductions(graph):
        yield reduction_facts(graph, reduction)


def forced(value: PartialValue, *, hoist: bool) -> bool:
    """Whether a value is Partial in every placement."""
    return not value.operands or value.pinned or (value.addend and not hoist)


def labelings(values: PartialValues, *, hoist: bool) -> Iterator[set[fx.Node]]:
    """All sets of Partial values such that operands of Partial ones are Partial."""
    free = [n for n, c in values.items() if not forced(c, hoist=hoist)]
    always = {n for n, c in values.items() if forced(c, hoist=hoist)}
    for bits in itertools.product((False, True), repeat=len(free)):
        partial = always | {n for n, bit in zip(free, bits, strict=True) if bit}
        if all(x in partial for n in partial for x in values[n].operands):
            yield partial


def reads_reduced(node: fx.Node, values: PartialValues, partial: set[fx.Node]) -> bool:
    """Whether anything reads the reduced form of ``node``; joint all_reduces need not."""
    if any(node in values[r].operands and r not in partial for r in values):
        return True
    if values[node].addend:  # other values read the addend itself
        return False
    return any(
        user not in values or node not in values[user].operands
        for user in node.users
        if user not in values[node].joint
        if not any(w in values and values[w].reduces for w in user.users)
    )


def weight(
    facts: ReductionFacts, values: PartialValues, partial: Set[fx.Node], prices: Prices
) -> tuple[int, int]:
    """Price, and how far the labeling is from the author's."""
    price = departures = 0
    reduction = facts.reduction
    parts = reduction.groups.axis_size if reduction.scatters else 1
    for node, value in values.items():
        if node in partial and reads_reduced(node, values, partial):
            price += prices.communication(reduction.collective, node, reduction.groups, parts)
            departures += not value.reduces
        author_partial = value.addend
        if not value.reduces and (node in partial) is not author_partial:
            departures += 1
    return price, departures
