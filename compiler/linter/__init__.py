"""Lint: wrong reductions, found by placements; the findings are data.

Two kinds of evidence. What is declared about the graph's inputs says of many values that they are
partial sums or shards: these must not be used as if they were whole. And what a reduction adds up
is taken to be addends, whatever the weights are: what is the same on all ranks must not be among
them.
A value that varies in an unknown way is never reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

from torch import fx

from compiler.ir.graph import SpmdGraph
from compiler.linter.collective_sizes import sizes
from compiler.linter.facts import Known
from compiler.linter.finding import RULES, Finding, Severity
from compiler.linter.outputs import unused, what_leaves
from compiler.linter.replicated_terms import counted_terms
from compiler.linter.sweep import sweep


def findings(
    graph: SpmdGraph, written: Mapping[int, str] | None = None, unsure: Set[fx.Node] = frozenset()
) -> tuple[Finding, ...]:
    """The mistakes in ``graph``, in program order.

    Args:
        graph: the graph; its inputs' placements are taken as they are.
        written: output -> input that it is written back to.
        unsure: calls that may have other numbers on other ranks; ``graph`` has no rule for them.
    """
    known = Known(graph, unsure)
    found = [
        *sweep(known),
        *counted_terms(known),
        *what_leaves(known, written or {}),
        *sizes(known),
        *unused(known),
    ]
    return tuple(sorted(found, key=lambda one: (one.value == "", int(one.value.lstrip("%") or 0))))


__all__ = ["RULES", "Finding", "Severity", "findings"]
