"""Results of analyses are kept on what they are about, and nowhere else."""

from __future__ import annotations

import gc
import weakref

from compiler.analysis.cache import cached
from compiler.analysis.reductions import reduction_facts, reductions
from compiler.analysis.replication import replication
from compiler.ir.graph import SpmdGraph
from tests.support.random_graphs import seeded


def test_an_analysis_runs_once_per_graph_and_arguments() -> None:
    ran: list[tuple[SpmdGraph, int]] = []

    @cached
    def counted(graph: SpmdGraph, number: int = 0) -> int:
        """Return the number of runs."""
        ran.append((graph, number))
        return len(ran)

    first, second = seeded(0), seeded(0)
    assert [counted(first), counted(first), counted(second), counted(first, number=1)] == [
        1,
        1,
        2,
        3,
    ]
    assert [counted(first, number=1), counted(first, 1), counted(first, 0)] == [3, 3, 1]
    assert ran == [(first, 0), (second, 0), (first, 1)]
    assert (counted.__name__, counted.__doc__) == ("counted", "Return the number of runs.")


def test_copies_and_rewrites_have_facts_of_their_own() -> None:
    graph = seeded(1)
    assert replication(graph) is replication(graph)
    assert set(replication(graph.own_copy())).isdisjoint(replication(graph))


def test_results_die_with_their_graph() -> None:
    graph = seeded(2)
    held = weakref.ref(reduction_facts(graph, reductions(graph)[0]))
    gc.collect()
    assert held() is not None
    del graph
    gc.collect()
    assert held() is None
