"""Numbers of values do not depend on names, and are those that are printed."""

from __future__ import annotations

from compiler.ir import text
from compiler.ir.numbering import numbers
from tests.graphs import function
from tests.random_graphs import seeded


def test_collective_and_wait_share_a_number() -> None:
    graph = function(
        '%0 "x": f64[4], %1 "y": f64[4]',
        "%2: f64[4] = comm.all_reduce(%0) {axis = tp, op = sum}",
        "%3: f64[4] = comm.all_reduce_start(%1) {axis = tp, op = sum}",
        "%4: f64[4] = aten.neg(%2)",
        "%5: f64[4] = comm.wait(%3)",
        "return %4, %5",
    )
    found = {node.name: number for node, number in numbers(graph.graph).items()}
    assert found == {"x": 0, "y": 1, "v2_start": 2, "v2": 2, "v3": 3, "v4": 4, "v5": 5}


def test_numbers_are_dense_stable_and_the_printed_ones() -> None:
    for seed in range(20):
        graph = seeded(seed)
        found = numbers(graph.graph)
        assert sorted(set(found.values())) == list(range(len(set(found.values()))))
        assert list(numbers(graph.own_copy().graph).values()) == list(found.values())
        assert found == text.numbers(graph.graph)
