"""Carriers: which values stand for a sum over ranks, in which form the graph holds them."""

from __future__ import annotations

from compiler.analysis.linearity import refusal
from compiler.analysis.partial_values import Carrier, addend, carriers
from compiler.analysis.reductions import facts, is_reduction, reductions, zeros
from compiler.ir.graph import SpmdGraph
from tests.support.graphs import function

SUM = "{axis = tp, op = sum}"


def described(graph: SpmdGraph) -> dict[str, str]:
    """Carrier -> its operands, and u where the graph holds it unreduced, r and p."""
    found = carriers(graph, facts(graph, reductions(graph)[0]))

    def text(c: Carrier) -> str:
        marks = "u" * c.addend + "r" * c.reduces + "p" * c.pinned
        return f"{','.join(n.name for n in c.operands)} {marks}".strip()

    return {node.name: text(c) for node, c in found.items()}


def test_addends_reach_back_and_sums_reach_forward_as_far_as_linearity() -> None:
    graph = function(
        '%0 "x": f64[4] {tp: V}, %1 "r": f64[4]',
        "%2: f64[4] = aten.silu(%0)",
        "%3: f64[4] = aten.mul.Tensor(%2, %1)",
        "%4: f64[4] = aten.neg(%3)",
        f"%5: f64[4] = comm.all_reduce(%4) {SUM}",
        "%6: f64[4] = aten.mul.Tensor(%5, 2)",
        "%7: f64[4] = aten.add.Tensor(%6, %5)",
        "%8: f64[4] = aten.silu(%7)",
        "%9: f64[4] = aten.neg(%8)",
        "return %9",
    )
    assert described(graph) == {
        "v2": "u", "v3": "v2 u", "v4": "v3 u", "v5": "v4 r", "v6": "v5", "v7": "v6,v5"
    }  # fmt: skip


def test_what_other_code_reads_unreduced_is_pinned() -> None:
    graph = function(
        '%0 "x": f64[4] {tp: V}',
        "%1: f64[4] = aten.neg(%0)",
        f"%2: f64[4] = comm.all_reduce(%1) {SUM}",
        "return %2, %1",
    )
    assert described(graph) == {"x": "u", "v1": "x up", "v2": "v1 r"}


def test_sum_of_what_all_ranks_hold_is_no_carrier() -> None:
    graph = function(
        '%0 "x": f64[4] {tp: V}',
        f"%1: f64[4] = comm.all_reduce(%0) {SUM}",
        f"%2: f64[4] = comm.all_reduce(%1) {SUM}",
        "return %2",
    )
    assert described(graph) == {"x": "u", "v1": "x r"}


def test_reductions_are_told_apart_by_ranks_and_kind() -> None:
    graph = function(
        '%0 "x": f64[4] {dp: V, tp: V}',
        f"%1: f64[4] = comm.all_reduce(%0) {SUM}",
        '%2: f64[4] = comm.all_reduce(%0) {group = "7", op = sum}',
        "%3: f64[4] = comm.all_reduce(%0) {axis = tp, op = avg}",
        "%4: f64[4] = comm.all_reduce(%0) {axis = dp, op = sum}",
        "%5: f64[4] = comm.all_reduce(%0) {axis = dp, op = max}",
        "%6: f64[8] = comm.all_gather(%0) {axis = dp}",
        "return %1, %2, %3, %4, %5, %6",
        mesh='mesh <dp = 2, tp = 2>\ngroup "7" = <tp>',
    )
    found = reductions(graph)
    assert [(r.group, r.kind) for r in found] == [
        ("tp", "sum"), ("tp", "avg"), ("dp", "sum"), ("dp", "max")
    ]  # fmt: skip
    held = {n.name: n for n in graph.graph.nodes}
    assert [n for n in held if is_reduction(graph, held[n], found[0])] == ["v1", "v2"]
    assert addend(held["v2"]) is held["x"]


def test_zeros() -> None:
    graph = function(
        '%0 "x": f64[4] {tp: V}, %1 "i": i64[4]',
        "%2: f64[4] = aten.full([4], 0.0, dtype = f64)",
        "%3: f64[4] = aten.full([4], 1.0, dtype = f64)",
        "%4: f64[4] = aten.zeros_like(%0)",
        "%5: f64[4] = aten.mul.Tensor(%2, %0)",
        "%6: f64[2, 2] = aten.view(%5, [2, 2])",
        "%7: f64[4] = aten.add.Tensor(%2, %3)",
        "%8: f64[4] = aten.add.Tensor(%2, %4)",
        "%9: f64[4] = aten.silu(%2)",
        "%10: f64[4] = aten.empty_like(%0)",
        "return %6, %7, %8, %9, %10",
    )
    assert sorted(n.name for n in zeros(graph)) == ["v2", "v4", "v5", "v6", "v8"]


def test_zeros_may_stand_for_a_partial_sum() -> None:
    def graph(fill: str) -> SpmdGraph:
        return function(
            '%0 "x": f64[4] {tp: V}',
            f"%1: f64[4] = aten.full([4], {fill}, dtype = f64)",
            f"%2: f64[4] = comm.all_reduce(%0) {SUM}",
            "%3: f64[4] = aten.add.Tensor(%1, %2)",
            "return %3",
        )

    for fill, why in (
        ("0.0", None),
        ("1.0", "aten.add.Tensor adds %v1, which is not a partial sum"),
    ):
        held = graph(fill)
        nodes = {n.name: n for n in held.graph.nodes}
        known = facts(held, reductions(held)[0])
        assert refusal(nodes["v3"], [nodes["v2"]], known) == why


def test_a_varying_factor_over_another_axis_is_no_obstacle() -> None:
    graph = function(
        '%0 "x": f64[4] {dp: V, tp: V}, %1 "w": f64[4] {dp: V}',
        f"%2: f64[4] = comm.all_reduce(%0) {SUM}",
        "%3: f64[4] = aten.mul.Tensor(%2, %1)",
        "return %3",
        mesh="mesh <dp = 2, tp = 2>",
    )
    assert described(graph) == {"x": "u", "v2": "x r", "v3": "v2"}
