"""What is the same calls, and what only looks like it."""

from __future__ import annotations

import pytest

from compiler.check.same_calls import same_calls
from tests.support.graphs import function

INPUTS = '%0 "x": f32[4, 4] {tp: V}, %1 "y": f32[4, 4] {tp: R}'
SOURCE = (
    "%2: f32[4, 4] = aten.neg(%0)",
    "%3: f32[4, 4] = aten.exp(%1)",
    "%4: f32[4, 4] = comm.all_reduce(%2) {axis = tp, op = sum}",
    "%5: f32[4, 4] = aten.add.Tensor(%4, %3)",
)


@pytest.mark.parametrize(
    ("lines", "same"),
    [
        ((SOURCE[1].replace("%3", "%2"), SOURCE[0].replace("%2", "%3"),
          SOURCE[2].replace("(%2)", "(%3)"), "%5: f32[4, 4] = aten.add.Tensor(%4, %2)"), True),
        ((*SOURCE[:3], "%6: f32[4, 4] = aten.exp(%4)", "%5: f32[4, 4] = aten.add.Tensor(%4, %3)"),
         True),
        ((*SOURCE[:3], "%5: f32[4, 4] = aten.add.Tensor(%3, %4)"), False),
        ((*SOURCE[:3], "%5: f32[4, 4] = aten.add.Tensor(%4, %3, alpha=2)"), False),
        ((SOURCE[0].replace("%0", "%1"), *SOURCE[1:]), False),
        ((*SOURCE[:2], SOURCE[2].replace("sum", "max"), SOURCE[3]), False),
    ],
)  # fmt: skip
def test_order_and_what_nobody_reads_do_not_matter(lines: tuple[str, ...], same: bool) -> None:
    source, target = function(INPUTS, *SOURCE, "return %5"), function(INPUTS, *lines, "return %5")
    assert same_calls(source, target, {}) is same


def test_numbers_that_differ_between_ranks() -> None:
    def shifted(by: str) -> object:
        return function(INPUTS, f"%2: f32[4, 4] = aten.add.Tensor(%0, {by})", "return %2")

    one, other = shifted("rank(0, 1, 2, 3)"), shifted("rank(0, 3, 2, 1)")
    assert same_calls(one, shifted("rank(0, 1, 2, 3)"), {})  # type: ignore[arg-type]
    assert not same_calls(one, other, {})  # type: ignore[arg-type]


def test_random_numbers_are_drawn_in_order() -> None:
    drawn = "= aten.rand_like(%0)"
    first = function(INPUTS, f"%2: f32[4, 4] {drawn}", "return %2")
    second = function(INPUTS, f"%2: f32[4, 4] {drawn}", f"%3: f32[4, 4] {drawn}", "return %3")
    assert same_calls(first, first.own_copy(), {})
    assert not same_calls(first, second, {})
