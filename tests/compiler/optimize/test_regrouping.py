"""Reductions meet in whatever order their results are added to other values."""

from __future__ import annotations

import re

import pytest

from compiler.check import Verdict
from compiler.ir.graph import SpmdGraph
from compiler.ir.remark import RemarkKind
from compiler.ir.text import print_graph
from tests.compiler.optimize.optimized import optimized
from tests.support.graphs import agree, function

SUM = "{axis = tp, op = sum}"
XY = '%0 "x": f64[4, 8] {tp: V}, %1 "y": f64[4, 8] {tp: V}'


FORMS = {
    # What is done with the all_reduces %3 and %4, and %2, which all ranks hold alike.
    "one after the other": ("%5 = add(%2, %3)", "%6 = add(%5, %4)", "return %6"),
    "the residual twice": (
        "%5 = add(%3, %2)", "%6 = add(%4, %2)", "%7 = add(%5, %6)", "return %7"
    ),
    "differences": ("%5 = sub(%2, %3)", "%6 = sub(%5, %4)", "return %6"),
    "scaled": ("%5 = add(%2, %3, alpha = 0.3)", "%6 = add(%5, %4, alpha = 0.3)", "return %6"),
    "numbers": ("%5 = add(%3, 1)", "%6 = add(%4, 2)", "%7 = add(%5, %6)", "return %7"),
}  # fmt: skip


def three_terms(form: str) -> SpmdGraph:
    lines = [
        re.sub(r" = (add|sub)\b", r": f64[4, 8] = aten.\1.Tensor", line) for line in FORMS[form]
    ]
    return function(
        XY + ', %2 "r": f64[4, 8]',
        f"%3: f64[4, 8] = comm.all_reduce(%0) {SUM}",
        f"%4: f64[4, 8] = comm.all_reduce(%1) {SUM}",
        *lines,
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("policy", ["cost", "merge", "boundary"])
def test_sums_meet_in_whatever_order_they_are_added(form: str, policy: str) -> None:
    graph = three_terms(form)
    result = optimized(graph, policy=policy)
    assert (result.verdict, result.after.all_reduces) == (Verdict.EQUIVALENT, 1)
    assert agree(graph, result.spmd)
    assert "%v3 and %v4, which come from all_reduce sum over tp, are added up first" in [
        r.reason for r in result.remarks if r.kind is RemarkKind.PASSED
    ]


@pytest.mark.parametrize("form", FORMS)
def test_policy_off_leaves_sums_in_the_order_they_are_added(form: str) -> None:
    graph = three_terms(form)
    result = optimized(graph, policy="off")
    assert print_graph(result.spmd) == print_graph(graph)
    assert "regroup-sums" not in [record.name for record in result.records]


@pytest.mark.parametrize(("wide", "after"), [("f32", 1), ("f64", 2)])
def test_sums_of_a_narrower_type_merge_where_that_takes_no_more_bytes(
    wide: str, after: int
) -> None:
    """Twice 64 bytes are one all_reduce of 128, but not of 256."""
    graph = function(
        f'%0 "x": bf16[4, 8] {{tp: V}}, %1 "y": bf16[4, 8] {{tp: V}}, %2 "r": {wide}[4, 8]',
        f"%3: bf16[4, 8] = comm.all_reduce(%0) {SUM}",
        f"%4: bf16[4, 8] = comm.all_reduce(%1) {SUM}",
        f"%5: {wide}[4, 8] = aten._to_copy(%3, dtype = {wide})",
        f"%6: {wide}[4, 8] = aten._to_copy(%4, dtype = {wide})",
        f"%7: {wide}[4, 8] = aten.add.Tensor(%2, %5)",
        f"%8: {wide}[4, 8] = aten.add.Tensor(%7, %6)",
        "return %8",
    )
    result = optimized(graph, widen=True)
    assert (result.verdict.runs, result.after.all_reduces) == (True, after)
    assert (result.before.payload_bytes, result.after.payload_bytes) == (128, 128)
    why = "all of them reduce, or may, 128 bytes, one reduction of %v8 256"
    assert [why in str(r) for r in result.remarks].count(True) == (2 if after == 2 else 0)
    assert optimized(graph).after.all_reduces == 2
