"""Rows shared wherever they can be: what is hard about it."""

from __future__ import annotations

import pytest

from compiler.analysis.row_shards import RowAssignment, row_forms
from compiler.check import Verdict, check
from compiler.errors import PlanError
from compiler.ir.collectives import WAIT
from compiler.ir.graph import SpmdGraph
from passes import ShardRows
from tests.support.graphs import agree, function

SUM = "{axis = tp, op = sum}"


def all_shared(graph: SpmdGraph) -> SpmdGraph:
    """The graph with every value held as shares that may be."""
    shards = frozenset(row_forms(graph, graph.mesh.group("tp")))
    return ShardRows(RowAssignment(graph, "tp", shards)).apply(graph).graph


def proved(source: SpmdGraph) -> SpmdGraph:
    target = all_shared(source)
    assert check(source, target).verdict is Verdict.EQUIVALENT
    assert agree(source, target)
    return target


def test_view_that_leaves_an_open_size_to_the_op_stays_whole() -> None:
    graph = function(
        '%0 "x": f64[8, s0] {tp: V}',
        f"%1: f64[8, s0] = comm.all_reduce(%0) {SUM}",
        "%2: f64[8, 1, s0] = aten.view(%1, [8, 1, -1])",
        "return %2",
        mesh="mesh <tp = 4>\nsym s0 in [2, 64]",
    )
    forms = row_forms(graph, graph.mesh.group("tp"))
    assert [n.target for n in forms] == [WAIT]
    proved(graph)


@pytest.mark.parametrize("dim", [0, 1, -1, -2])
def test_a_size_is_read_off_the_value_that_is_whole(dim: int) -> None:
    size, kind = ("s0", "sym(s0)") if dim in (0, -2) else ("4", "int(4)")
    proved(
        function(
            '%0 "x": f64[s0, 4] {tp: V}',
            f"%1: f64[s0, 4] = comm.all_reduce(%0) {SUM}",
            "%2: f64[s0, 4] = aten.silu(%1)",
            f"%3: {kind} = aten.sym_size.int(%2, {dim})",
            f"%4: f64[{size}, 2] = aten.full([%3, 2], 1.0, dtype = f64)",
            "return %4, %2",
            mesh="mesh <tp = 4>\nsym s0 in [2, 64]",
        )
    )


def test_assignment_of_another_graph_is_refused() -> None:
    graph = function(
        '%0 "x": f64[8, 4] {tp: V}', f"%1: f64[8, 4] = comm.all_reduce(%0) {SUM}", "return %1"
    )
    assignment = RowAssignment(graph, "tp", frozenset(row_forms(graph, graph.mesh.group("tp"))))
    with pytest.raises(PlanError) as caught:
        ShardRows(assignment).apply(graph.own_copy())
    assert str(caught.value) == (
        "the plan does not fit the graph\n"
        "  where: rows shared over tp\n"
        "  found: an assignment for another graph\n"
        "  remedy: plan again for this graph"
    )
