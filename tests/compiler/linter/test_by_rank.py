"""Slices and factors by rank: what they leave out, and what they need not."""

from __future__ import annotations

import pytest

from tests.compiler.linter.rules_of import rules_of

ONES = "input_splits = [1, 1, 1, 1], output_splits = [1, 1, 1, 1]"
CASES = {
    "own rows of a partial sum, reduced": (
        "sums-shards",
        ('%0 "x": f64[8, 4] {tp: P}',
         "%1: f64[2, 4] = aten.narrow(%0, 0, rank(0, 2, 4, 6), 2)",
         "%2: f64[2, 4] = comm.all_reduce(%1) {axis = tp, op = sum}",
         "return %2"),
    ),
    "own rows of own rows": (
        "lost-rows",
        ('%0 "x": f64[4, 8] {tp: S(0)}',
         "%1: f64[1, 8] = aten.narrow(%0, 0, rank(0, 1, 2, 3), 1)",
         "%2: f64[4, 8] = comm.all_gather(%1) {axis = tp}",
         "return %2"),
    ),
    "own scale undone for all rows": (
        "own-scale",
        ('%0 "x": f64[3, 8] {tp: S(0)}',
         "%1: f64[3, 8] = aten.abs(%0)",
         "%2: f64[] = aten.amax(%1)",
         "%3: f64[3, 8] = aten.div.Tensor(%0, %2)",
         "%4: f64[12, 8] = comm.all_gather(%3) {axis = tp}",
         "%5: f64[12, 8] = aten.mul.Tensor(%4, %2)",
         "return %5"),
    ),
    "all_to_all of a partial sum": (
        "gathers-partial",
        ('%0 "p": f64[4, 8] {tp: P}',
         f"%1: f64[4, 8] = comm.all_to_all(%0) {{axis = tp, {ONES}}}",
         "%2: f64[4, 8] = aten.silu(%1)",
         "return %2"),
    ),
    "mask by rank of a bias": (
        "",
        ('%0 "x": f64[4] {tp: P}, %1 "b": f64[4]',
         "%2: f64[4] = aten.mul.Tensor(%1, rank(1.0, 0.0, 0.0, 0.0))",
         "%3: f64[4] = aten.add.Tensor(%0, %2)",
         "%4: f64[4] = comm.all_reduce(%3) {axis = tp, op = sum}",
         "return %4"),
    ),
    "own rows of a whole, gathered": (
        "",
        ('%0 "x": f64[8, 8]',
         "%1: f64[2, 8] = aten.narrow(%0, 0, rank(0, 2, 4, 6), 2)",
         "%2: f64[2, 8] = aten.tanh(%1)",
         "%3: f64[8, 8] = comm.all_gather(%2) {axis = tp}",
         "return %3"),
    ),
    "own rows of a whole, some left out": (
        "lost-rows",
        ('%0 "x": f64[9, 8]',
         "%1: f64[2, 8] = aten.narrow(%0, 0, rank(0, 2, 4, 6), 2)",
         "%2: f64[2, 8] = aten.tanh(%1)",
         "%3: f64[8, 8] = comm.all_gather(%2) {axis = tp}",
         "return %3"),
    ),
    "own rows of a whole, summed": (
        "sums-shards",
        ('%0 "x": f64[8, 8]',
         "%1: f64[2, 8] = aten.narrow(%0, 0, rank(0, 2, 4, 6), 2)",
         "%2: f64[2, 8] = comm.all_reduce(%1) {axis = tp, op = sum}",
         "return %2"),
    ),
    "all_to_all of partial, summed by hand": (
        "",
        ('%0 "p": f64[4, 8] {tp: P}',
         f"%1: f64[4, 8] = comm.all_to_all(%0) {{axis = tp, {ONES}}}",
         "%2: f64[8] = aten.sum.dim_IntList(%1, [0])",
         "%3: f64[8] = aten.silu(%2)",
         "return %3"),
    ),
    "own scale gathered too": (
        "",
        ('%0 "x": f64[3, 8] {tp: S(0)}',
         "%1: f64[3, 8] = aten.abs(%0)",
         "%2: f64[3, 1] = aten.amax(%1, [1], true)",
         "%3: f64[3, 8] = aten.div.Tensor(%0, %2)",
         "%4: f64[12, 8] = comm.all_gather(%3) {axis = tp}",
         "%5: f64[12, 1] = comm.all_gather(%2) {axis = tp}",
         "%6: f64[12, 8] = aten.mul.Tensor(%4, %5)",
         "return %6"),
    ),
    "common scale": (
        "",
        ('%0 "x": f64[3, 8] {tp: S(0)}',
         "%1: f64[3, 8] = aten.abs(%0)",
         "%2: f64[] = aten.amax(%1)",
         "%7: f64[] = comm.all_reduce(%2) {axis = tp, op = max}",
         "%3: f64[3, 8] = aten.div.Tensor(%0, %7)",
         "%4: f64[12, 8] = comm.all_gather(%3) {axis = tp}",
         "%5: f64[12, 8] = aten.mul.Tensor(%4, %7)",
         "return %5"),
    ),
}  # fmt: skip
"""What is done -> the only finding, or none; and the graph."""


@pytest.mark.parametrize("name", CASES)
def test_finding(name: str) -> None:
    rule, lines = CASES[name]
    assert rules_of(lines) == ([rule] if rule else [])
