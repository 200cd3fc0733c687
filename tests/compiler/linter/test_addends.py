"""What is done to addends on purpose."""

from __future__ import annotations

import pytest

from tests.compiler.linter.rules_of import rules_of

CASES = {
    "scale by the largest addend": (
        "",
        ('%0 "p": f64[4, 8] {tp: P}',
         "%1: f64[4, 8] = aten.abs(%0)",
         "%2: f64[] = aten.amax(%1)",
         "%3: f64[] = comm.all_reduce(%2) {axis = tp, op = max}",
         "%4: f64[4, 8] = aten.div.Tensor(%0, %3)",
         "%5: f64[4, 8] = comm.all_reduce(%4) {axis = tp, op = sum}",
         "%6: f64[4, 8] = aten.mul.Tensor(%5, %3)",
         "return %6"),
    ),
    "scaled copies in disguise": (
        "",
        ('%0 "p": f64[4] {tp: P}, %1 "b": f64[4]',
         "%2: f64[4] = aten.div.Tensor(%1, 4)",
         "%3: f64[4] = aten.sub.Tensor(%2, %1)",
         "%4: f64[4] = aten.add.Tensor(%1, %3)",
         "%5: f64[4] = aten.add.Tensor(%0, %4)",
         "%6: f64[4] = comm.all_reduce(%5) {axis = tp, op = sum}",
         "return %6"),
    ),
    "scaled copies, wrongly": (
        "replicated-term",
        ('%0 "p": f64[4] {tp: P}, %1 "b": f64[4]',
         "%2: f64[4] = aten.div.Tensor(%1, 2)",
         "%3: f64[4] = aten.sub.Tensor(%2, %1)",
         "%4: f64[4] = aten.add.Tensor(%1, %3)",
         "%5: f64[4] = aten.add.Tensor(%0, %4)",
         "%6: f64[4] = comm.all_reduce(%5) {axis = tp, op = sum}",
         "return %6"),
    ),
    "a number divided by n": (
        "",
        ('%0 "p": f64[4] {tp: P}',
         "%1: f64[4] = aten.add.Tensor(%0, 0.25)",
         "%2: f64[4] = comm.all_reduce(%1) {axis = tp, op = sum}",
         "return %2"),
    ),
    "a number not divided": (
        "replicated-term",
        ('%0 "p": f64[4] {tp: P}',
         "%1: f64[4] = aten.add.Tensor(%0, 1.0)",
         "%2: f64[4] = comm.all_reduce(%1) {axis = tp, op = sum}",
         "return %2"),
    ),
    "scale by the largest addend, never undone": (
        "nonlinear-on-partial",
        ('%0 "p": f64[4, 8] {tp: P}',
         "%1: f64[4, 8] = aten.abs(%0)",
         "%2: f64[] = aten.amax(%1)",
         "%3: f64[] = comm.all_reduce(%2) {axis = tp, op = max}",
         "%4: f64[4, 8] = aten.div.Tensor(%0, %3)",
         "%5: f64[4, 8] = comm.all_reduce(%4) {axis = tp, op = sum}",
         "return %5"),
    ),
}  # fmt: skip
"""What is done -> the only finding, or none; and the graph."""


@pytest.mark.parametrize("name", CASES)
def test_finding(name: str) -> None:
    rule, lines = CASES[name]
    assert rules_of(lines) == ([rule] if rule else [])
