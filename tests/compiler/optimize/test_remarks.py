"""Remarks of all passes together say what became of each reduction, once."""

from __future__ import annotations

from compiler.check import Verdict
from compiler.ir.graph import SpmdGraph
from compiler.ir.remark import RemarkKind
from tests.compiler.optimize.optimized import optimized
from tests.support.graphs import function
from tests.support.machines import machine

SUM = "{axis = tp, op = sum}"


def two_reductions_and_one() -> SpmdGraph:
    """Two that merge, and one that stays where it is; enough is done to rows to share them."""
    after_two = [f"%{i}: f32[s0, 32] = aten.silu(%{i - 1})" for i in range(6, 11)]
    after_one = [f"%{i}: f32[s0, 32] = aten.silu(%{i - 1})" for i in range(13, 18)]
    return function(
        '%0 "x": f32[s0, 32] {tp: V}, %1 "y": f32[s0, 32] {tp: V}, %2 "z": f32[s0, 32] {tp: V}',
        f"%3: f32[s0, 32] = comm.all_reduce(%0) {SUM}",
        f"%4: f32[s0, 32] = comm.all_reduce(%1) {SUM}",
        "%5: f32[s0, 32] = aten.add.Tensor(%3, %4)",
        *after_two,
        "%11: f32[s0, 32] = aten.mul.Tensor(%10, %2)",
        f"%12: f32[s0, 32] = comm.all_reduce(%11) {SUM}",
        *after_one,
        "return %17",
        mesh="mesh <tp = 4>\nsym s0 in [2, 4096]",
    )


def test_a_reduction_that_is_scattered_is_not_said_to_be_kept() -> None:
    graph = two_reductions_and_one()
    plain = optimized(graph)
    kept = "%v12: all_reduce kept: aten.silu.default is not linear"
    assert f"missed: {kept}" in map(str, plain.remarks)

    result = optimized(graph, machine=machine(4, memory=1), tokens=400)
    assert (result.verdict, result.after.all_reduces) == (Verdict.EQUIVALENT, 0)
    assert "passed: %v12: all_reduce became a reduce_scatter" in map(str, result.remarks)
    assert not [r for r in result.remarks if r.kind is RemarkKind.MISSED]


def test_roundings_name_what_is_added_not_the_rows_it_is_padded_with() -> None:
    result = optimized(two_reductions_and_one(), machine=machine(4, memory=1), tokens=400)
    assert result.report is not None
    (rounding,) = result.report.roundings
    assert "reduce_scatter over tp takes aten.add.Tensor of 2 operands: additions" in rounding


def test_all_reduces_of_one_value_are_done_once() -> None:
    graph = function(
        '%0 "x": f64[4, 8] {tp: V}',
        "%1: f64[4, 8] = aten.silu(%0)",
        f"%2: f64[4, 8] = comm.all_reduce(%1) {SUM}",
        f"%3: f64[4, 8] = comm.all_reduce(%1) {SUM}",
        "%4: f64[4, 8] = aten.add.Tensor(%2, %3)",
        "return %4",
    )
    result = optimized(graph)
    assert (result.verdict, result.after.all_reduces) == (Verdict.EQUIVALENT, 1)
    assert [str(r) for r in result.remarks] == [
        "passed: %v2: all_reduce done once for all that need %v1 reduced",
        "passed: %v3: all_reduce done once for all that need %v1 reduced",
    ]
