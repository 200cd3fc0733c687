"""Rows shared wherever they can be: what is hard about it."""

from __future__ import annotations

import pytest

from compiler.analysis.row_shards import row_forms
from compiler.check import Verdict, check
from compiler.ir.collectives import WAIT, Kind, collectives
from compiler.ir.comm_plan import RowStage
from compiler.ir.graph import SpmdGraph
from compiler.ir.text import numbers
from passes import ShardRows
from tests.support.graphs import agree, aten, function

SUM = "{axis = tp, op = sum}"


def all_shared(graph: SpmdGraph) -> SpmdGraph:
    """The graph with every value held as shares that may be."""
    number, forms = numbers(graph.graph), row_forms(graph, graph.mesh.group("tp"))
    shares = tuple(number[n] for n in forms)
    stage = RowStage(group="tp", shares=shares, reduce_scatters=0, all_gathers=0)
    return ShardRows(stage).apply(graph).graph


def proved(source: SpmdGraph) -> SpmdGraph:
    target = all_shared(source)
    assert check(source, target).verdict is Verdict.EQUIVALENT
    assert agree(source, target)
    return target


def test_addend_that_is_a_share_is_gathered_before_it_is_reduced_again() -> None:
    target = proved(
        function(
            '%0 "x": f64[8, 4] {tp: V}',
            f"%1: f64[8, 4] = comm.all_reduce(%0) {SUM}",
            "%2: f64[8, 4] = aten.silu(%1)",
            f"%3: f64[8, 4] = comm.all_reduce(%2) {SUM}",
            "return %3",
        )
    )
    scatter, gather = Kind.REDUCE_SCATTER, Kind.ALL_GATHER
    kinds = [found.kind for _, found in collectives(target.graph)]
    assert kinds == [scatter, gather, scatter, gather]


def test_size_that_a_view_leaves_open_is_stated_where_rows_are_left_open_instead() -> None:
    target = proved(
        function(
            '%0 "x": f64[8, 4] {tp: V}',
            f"%1: f64[8, 4] = comm.all_reduce(%0) {SUM}",
            "%2: f64[8, 2, 2] = aten.view(%1, [8, 2, -1])",
            "return %2",
        )
    )
    (view,) = target.graph.find_nodes(op="call_function", target=aten.view.default)
    assert view.args[1] == [-1, 2, 2]


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
