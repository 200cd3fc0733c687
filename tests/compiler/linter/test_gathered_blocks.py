"""Gathered blocks: in order, or read as if they were."""

from __future__ import annotations

import pytest

from tests.compiler.linter.rules_of import rules_of

CASES = {
    "columns gathered and only viewed": (
        "wrong-gather-dim",
        ('%0 "x": f64[4, 6] {tp: S(1)}, %1 "w": f64[24, 8]',
         "%2: f64[16, 6] = comm.all_gather(%0) {axis = tp}",
         "%3: f64[4, 24] = aten.view(%2, [4, 24])",
         "%4: f64[4, 8] = aten.mm(%3, %1)",
         "return %4"),
    ),
    "nested shards, outer axis first": (
        "wrong-gather-dim",
        ('%0 "x": f64[2, 8] {o: S(0), i: S(0)}, %1 "r": f64[8, 8]',
         "%2: f64[4, 8] = comm.all_gather(%0) {axis = o}",
         "%3: f64[8, 8] = comm.all_gather(%2) {axis = i}",
         "%4: f64[8, 8] = aten.add.Tensor(%1, %3)",
         "return %4"),
    ),
    "select of gathered scales": (
        "unused-chunks",
        ('%0 "q": f64[3, 8] {tp: S(0)}, %1 "s": f64[1] {tp: S(0)}',
         "%2: f64[12, 8] = comm.all_gather(%0) {axis = tp}",
         "%3: f64[4] = comm.all_gather(%1) {axis = tp}",
         "%4: f64[] = aten.select.int(%3, 0, 0)",
         "%5: f64[12, 8] = aten.mul.Tensor(%2, %4)",
         "return %5"),
    ),
    "last token after gather": (
        "",
        ('%0 "x": f64[3, 8] {tp: S(0)}',
         "%1: f64[12, 8] = comm.all_gather(%0) {axis = tp}",
         "%2: f64[8] = aten.select.int(%1, 0, -1)",
         "%3: f64[8] = aten.tanh(%2)",
         "return %3"),
    ),
    "columns, permuted wrongly": (
        "wrong-gather-dim",
        ('%0 "x": f64[5, 6] {tp: S(1)}, %1 "w": f64[24, 8]',
         "%2: f64[20, 6] = comm.all_gather(%0) {axis = tp}",
         "%3: f64[4, 5, 6] = aten.view(%2, [4, 5, 6])",
         "%4: f64[5, 6, 4] = aten.permute(%3, [1, 2, 0])",
         "%5: f64[5, 24] = aten.reshape(%4, [5, 24])",
         "%6: f64[5, 8] = aten.mm(%5, %1)",
         "return %6"),
    ),
    "heads of gathered columns before tokens": (
        "",
        ('%0 "x": f64[5, 6] {tp: S(1)}',
         "%1: f64[20, 6] = comm.all_gather(%0) {axis = tp}",
         "%2: f64[4, 5, 6] = aten.view(%1, [4, 5, 6])",
         "%3: f64[5, 4, 6] = aten.permute(%2, [1, 0, 2])",
         "%4: f64[5, 12, 2] = aten.reshape(%3, [5, 12, 2])",
         "%5: f64[12, 5, 2] = aten.transpose.int(%4, 0, 1)",
         "%6: f64[12, 5, 2] = aten.softmax.int(%5, -1)",
         "return %6"),
    ),
    "columns in order, then halves exchanged": (
        "",
        ('%0 "x": f64[5, 6] {tp: S(1)}, %1 "w": f64[24, 8]',
         "%2: f64[20, 6] = comm.all_gather(%0) {axis = tp}",
         "%3: f64[4, 5, 6] = aten.view(%2, [4, 5, 6])",
         "%4: f64[5, 4, 6] = aten.permute(%3, [1, 0, 2])",
         "%5: f64[5, 24] = aten.reshape(%4, [5, 24])",
         "%6: f64[5, 12] = aten.slice.Tensor(%5, 1, 0, 12)",
         "%7: f64[5, 12] = aten.slice.Tensor(%5, 1, 12, 24)",
         "%8: f64[5, 24] = aten.cat([%7, %6], 1)",
         "%9: f64[5, 8] = aten.mm(%8, %1)",
         "return %9"),
    ),
    "columns, permuted right": (
        "",
        ('%0 "x": f64[5, 6] {tp: S(1)}, %1 "w": f64[24, 8]',
         "%2: f64[20, 6] = comm.all_gather(%0) {axis = tp}",
         "%3: f64[4, 5, 6] = aten.view(%2, [4, 5, 6])",
         "%4: f64[5, 4, 6] = aten.permute(%3, [1, 0, 2])",
         "%5: f64[5, 24] = aten.reshape(%4, [5, 24])",
         "%6: f64[5, 8] = aten.mm(%5, %1)",
         "return %6"),
    ),
    "columns by split and cat, order wrong": (
        "wrong-gather-dim",
        ('%0 "x": f64[5, 6] {tp: S(1)}, %1 "w": f64[24, 8]',
         "%2: f64[20, 6] = comm.all_gather(%0) {axis = tp}",
         "%3: (f64[5, 6], f64[5, 6], f64[5, 6], f64[5, 6]) = aten.split.Tensor(%2, 5)",
         "%4: f64[5, 6] = %3[0]",
         "%5: f64[5, 6] = %3[1]",
         "%6: f64[5, 6] = %3[2]",
         "%7: f64[5, 6] = %3[3]",
         "%8: f64[5, 24] = aten.cat([%5, %4, %6, %7], 1)",
         "%9: f64[5, 8] = aten.mm(%8, %1)",
         "return %9"),
    ),
    "columns transposed, gathered, used as transposed": (
        "",
        ('%0 "x": f64[5, 6] {tp: S(1)}, %1 "w": f64[3, 24]',
         "%2: f64[6, 5] = aten.t(%0)",
         "%3: f64[24, 5] = comm.all_gather(%2) {axis = tp}",
         "%4: f64[3, 5] = aten.mm(%1, %3)",
         "return %4"),
    ),
    "columns kept by rank, batched product": (
        "",
        ('%0 "x": f64[5, 6] {tp: S(1)}, %1 "w": f64[4, 6, 8]',
         "%2: f64[20, 6] = comm.all_gather(%0) {axis = tp}",
         "%3: f64[4, 5, 6] = aten.view(%2, [4, 5, 6])",
         "%4: f64[4, 5, 8] = aten.bmm(%3, %1)",
         "%5: f64[5, 8] = aten.sum.dim_IntList(%4, [0])",
         "return %5"),
    ),
    "nested inner first": (
        "",
        ('%0 "x": f64[2, 8] {o: S(0), i: S(0)}, %1 "r": f64[8, 8]',
         "%2: f64[4, 8] = comm.all_gather(%0) {axis = i}",
         "%3: f64[8, 8] = comm.all_gather(%2) {axis = o}",
         "%4: f64[8, 8] = aten.add.Tensor(%1, %3)",
         "return %4"),
    ),
    "nested outer first, put right": (
        "",
        ('%0 "x": f64[2, 8] {o: S(0), i: S(0)}, %1 "r": f64[8, 8]',
         "%2: f64[4, 8] = comm.all_gather(%0) {axis = o}",
         "%3: f64[8, 8] = comm.all_gather(%2) {axis = i}",
         "%4: f64[2, 2, 2, 8] = aten.view(%3, [2, 2, 2, 8])",
         "%5: f64[2, 2, 2, 8] = aten.transpose.int(%4, 0, 1)",
         "%6: f64[8, 8] = aten.reshape(%5, [8, 8])",
         "%7: f64[8, 8] = aten.add.Tensor(%1, %6)",
         "return %7"),
    ),
}  # fmt: skip
"""What is done -> the only finding, or none; and the graph."""


@pytest.mark.parametrize("name", CASES)
def test_finding(name: str) -> None:
    rule, lines = CASES[name]
    assert rules_of(lines) == ([rule] if rule else [])
