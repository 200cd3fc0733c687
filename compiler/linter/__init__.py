"""Lint: wrong reductions, found by placements; the findings are data.

Two kinds of evidence. What is declared about the graph's inputs says of many values that they are
partial sums or shards: these must not be used as if they were whole. And what a reduction adds up
is taken to be addends, whatever the weights are: what is the same on all ranks must not be among
them.
A value that varies in an unknown way is never reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set

from torch import fx

from compiler.ir.dialects import called, remedy, unknown_collectives
from compiler.ir.graph import SpmdGraph
from compiler.linter.by_rank import misused_by_rank
from compiler.linter.collective_sizes import collective_sizes
from compiler.linter.collectives import misused_collectives
from compiler.linter.coverage import Coverage, coverage
from compiler.linter.facts import LintFacts
from compiler.linter.finding import RULES, Finding, Severity
from compiler.linter.misused_values import misused_values


def findings(
    graph: SpmdGraph, written: Mapping[int, str] | None = None, unsure: Set[fx.Node] = frozenset()
) -> tuple[Finding, ...]:
    """Return the mistakes in ``graph``, in program order.

    Args:
        graph: the graph; its inputs' placements are taken as they are.
        written: output -> input that it is written back to.
        unsure: calls that may have other numbers on other ranks; ``graph`` has no rule for them.
    """
    return findings_of(LintFacts(graph, unsure), written)


def findings_of(facts: LintFacts, written: Mapping[int, str] | None = None) -> tuple[Finding, ...]:
    """Return the mistakes in the graph that ``facts`` are about, as ``findings``."""
    mistakes = [
        *misused_values(facts, written or {}),
        *misused_collectives(facts),
        *collective_sizes(facts),
        *unread(facts),
        *misused_by_rank(facts),
    ]
    return tuple(sorted(mistakes, key=lambda finding: int(finding.value.lstrip("%"))))


def unread(facts: LintFacts) -> Iterator[Finding]:
    """Yield a warning for every op that may be a collective, and that nothing is known of."""
    for node, why in unknown_collectives(facts.graph.graph):
        problem = f"{called(node)} looks like a collective by {why}; what it does is not known"
        yield facts.finding("unknown-collective", node, problem, remedy(node))


__all__ = [
    "RULES",
    "Coverage",
    "Finding",
    "LintFacts",
    "Severity",
    "coverage",
    "findings",
    "findings_of",
]
