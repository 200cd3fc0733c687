"""Means, maxima and norms over a dimension that is cut: what they are part of."""

from __future__ import annotations

import pytest

from tests.compiler.linter.rules_of import rules_of

CASES = {
    "mean of a shard joins the whole": (
        "partial-output",
        ('%0 "x": f64[4, 8], %1 "w": f64[8, 6] {tp: S(1)}',
         "%2: f64[4, 6] = aten.mm(%0, %1)",
         "%3: f64[4, 1] = aten.mean.dim(%2, [1], true)",
         "%4: f64[4, 8] = aten.add.Tensor(%0, %3)",
         "return %4"),
    ),
    "rms of a shard by its own mean": (
        "nonlinear-on-partial",
        ('%0 "x": f64[4, 8], %1 "w": f64[8, 6] {tp: S(1)}, %2 "o": f64[6, 8] {tp: S(0)}',
         "%3: f64[4, 6] = aten.mm(%0, %1)",
         "%4: f64[4, 6] = aten.pow.Tensor_Scalar(%3, 2)",
         "%5: f64[4, 1] = aten.mean.dim(%4, [1], true)",
         "%6: f64[4, 1] = aten.rsqrt(%5)",
         "%7: f64[4, 6] = aten.mul.Tensor(%3, %6)",
         "%8: f64[4, 8] = aten.mm(%7, %2)",
         "%9: f64[4, 8] = comm.all_reduce(%8) {axis = tp, op = sum}",
         "return %9"),
    ),
    "max over a shard, summed": (
        "wrong-kind",
        ('%0 "l": f64[4, 5] {tp: S(1)}',
         "%1: f64[4] = aten.amax(%0, [1])",
         "%2: f64[4] = comm.all_reduce(%1) {axis = tp, op = sum}",
         "return %2"),
    ),
    "one key head per rank": (
        "",
        ('%0 "q": f64[2, 3, 4] {tp: S(0)}, %1 "x": f64[3, 8], %2 "wk": f64[8, 4] {tp: S(1)}',
         "%3: f64[3, 4] = aten.mm(%1, %2)",
         '%4: f64[2, 3, 3] = aten.einsum("htd,sd->hts", [%0, %3])',
         "return %4"),
    ),
    "mean of local means, divided by n": (
        "",
        ('%0 "x": f64[4, 8] {tp: S(0)}',
         "%1: f64[8] = aten.mean.dim(%0, [0])",
         "%2: f64[8] = comm.all_reduce(%1) {axis = tp, op = sum}",
         "%3: f64[8] = aten.div.Tensor(%2, 4)",
         "return %3"),
    ),
    "mean of local means by avg": (
        "",
        ('%0 "x": f64[4, 8] {tp: S(0)}',
         "%1: f64[8] = aten.mean.dim(%0, [0])",
         "%2: f64[8] = comm.all_reduce(%1) {axis = tp, op = avg}",
         "return %2"),
    ),
    "sum of local means": (
        "wrong-kind",
        ('%0 "x": f64[4, 8] {tp: S(0)}',
         "%1: f64[8] = aten.mean.dim(%0, [0])",
         "%2: f64[8] = comm.all_reduce(%1) {axis = tp, op = sum}",
         "return %2"),
    ),
    "rms of shard, mean reduced first": (
        "",
        ('%0 "x": f64[4, 8], %1 "w": f64[8, 6] {tp: S(1)}',
         "%2: f64[4, 6] = aten.mm(%0, %1)",
         "%3: f64[4, 6] = aten.pow.Tensor_Scalar(%2, 2)",
         "%4: f64[4, 1] = aten.mean.dim(%3, [1], true)",
         "%5: f64[4, 1] = comm.all_reduce(%4) {axis = tp, op = avg}",
         "%6: f64[4, 1] = aten.add.Tensor(%5, 1e-6)",
         "%7: f64[4, 1] = aten.rsqrt(%6)",
         "%8: f64[4, 6] = aten.mul.Tensor(%2, %7)",
         "return %8"),
    ),
    "one group per rank": (
        "",
        ('%0 "x": f64[4, 8], %1 "w": f64[8, 6] {tp: S(1)}',
         "%2: f64[4, 6] = aten.mm(%0, %1)",
         "%3: f64[4, 1, 6] = aten.view(%2, [4, 1, 6])",
         "%4: f64[4, 1, 6] = aten.mul.Tensor(%3, %3)",
         "%5: f64[4, 1, 1] = aten.mean.dim(%4, [-1], true)",
         "%6: f64[4, 1, 1] = aten.rsqrt(%5)",
         "%7: f64[4, 1, 6] = aten.mul.Tensor(%3, %6)",
         "return %7"),
    ),
    "group_norm op": (
        "",
        ('%0 "x": f64[4, 8], %1 "w": f64[8, 6] {tp: S(1)}',
         "%2: f64[4, 6] = aten.mm(%0, %1)",
         "%3: f64[4, 6] = aten.group_norm(%2, 1)",
         "return %3"),
    ),
    "norm over shard summed": (
        "wrong-kind",
        ('%0 "x": f64[4, 6] {tp: S(0)}',
         "%1: f64[] = aten.linalg_vector_norm(%0)",
         "%2: f64[] = comm.all_reduce(%1) {axis = tp, op = sum}",
         "return %2"),
    ),
    "norm squared summed": (
        "",
        ('%0 "x": f64[4, 6] {tp: S(0)}',
         "%1: f64[] = aten.linalg_vector_norm(%0)",
         "%2: f64[] = aten.pow.Tensor_Scalar(%1, 2)",
         "%3: f64[] = comm.all_reduce(%2) {axis = tp, op = sum}",
         "%4: f64[] = aten.sqrt(%3)",
         "return %4"),
    ),
    "max over shard by max": (
        "",
        ('%0 "l": f64[4, 5] {tp: S(1)}',
         "%1: f64[4] = aten.amax(%0, [1])",
         "%2: f64[4] = comm.all_reduce(%1) {axis = tp, op = max}",
         "return %2"),
    ),
    "max over shard returned": (
        "partial-output",
        ('%0 "l": f64[4, 5] {tp: S(1)}',
         "%1: f64[4] = aten.amax(%0, [1])",
         "return %1"),
    ),
    "one key head per rank by matmul": (
        "",
        ('%0 "q": f64[2, 3, 4] {tp: S(0)}, %1 "x": f64[3, 8], %2 "wk": f64[8, 4] {tp: S(1)}',
         "%3: f64[3, 4] = aten.mm(%1, %2)",
         "%4: f64[4, 3] = aten.t(%3)",
         "%5: f64[2, 3, 3] = aten.matmul(%0, %4)",
         "return %5"),
    ),
}  # fmt: skip
"""What is done -> the only finding, or none; and the graph."""


@pytest.mark.parametrize("name", CASES)
def test_finding(name: str) -> None:
    rule, lines = CASES[name]
    assert rules_of(lines) == ([rule] if rule else [])
