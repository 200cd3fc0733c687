"""Which ops treat an index's entries one by one, and what a sum over cases is."""

from __future__ import annotations

from functools import partial

import pytest

from compiler.check import algebra
from tests.compiler.check.single_device.twins import (
    aten,
    compared,
    numbers,
    reduced,
    right,
    wrong,
)

T, WORDS, H, RANKS = 6, 16, 8, 4
OWN = WORDS // RANKS
TABLE = {"ids": (T,), "table": (WORDS, H)}


def looked_up(b, v):
    """Rows of a table, by an index that is not an embedding's: they stay in cases."""
    return b.call(aten.index.Tensor, v["table"], [v["ids"]])


def masked(b, v, between):
    """Rows of this rank's part of the table; what lies between lookup and mask is ``between``."""
    local = b.call(aten.sub.Tensor, v["ids"], numbers(*(r * OWN for r in range(RANKS))))
    inside = b.call(aten.lt.Scalar, local, OWN)
    own = b.call(aten.__and__.Tensor, b.call(aten.ge.Scalar, local, 0), inside)
    index = b.call(aten.where.ScalarOther, own, local, 0)
    rows = between(b, b.call(aten.index.Tensor, v["table"], [index]))
    mask = b.call(aten.unsqueeze.default, own, -1)
    return reduced(b, b.call(aten.where.ScalarOther, mask, rows, 0.0))


BETWEEN = {
    "elementwise": (lambda b, x: b.call(aten.exp.default, x), True),
    "along the row": (lambda b, x: b.call(aten.softmax.int, x, 1), True),
    "norm of a row": (lambda b, x: b.call(aten.layer_norm.default, x, [H]), True),
    "among rows": (lambda b, x: b.call(aten.softmax.int, x, 0), False),
    "rows in another order": (lambda b, x: b.call(aten.flip.default, x, [0]), False),
    "running sum": (lambda b, x: b.call(aten.cumsum.default, x, 0), False),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_between_lookup_and_mask_rows_must_stay_apart(name):
    between, by_rows = BETWEEN[name]
    report = compared(
        lambda b, v: between(b, looked_up(b, v)), lambda b, v: masked(b, v, between),
        TABLE, {"table": 0},
    )  # fmt: skip
    (right if by_rows else wrong)(report)


def test_dimensions_of_size_one_number_no_entries():
    """One token of several sequences: a mask with one more dimension numbers the same rows."""
    shapes = {"ids": (T, 1), "table": (WORDS, H)}
    for between, check in ((lambda b, x: x, right), (flipped, wrong)):
        check(compared(looked_up, partial(masked, between=between), shapes, {"table": 0}))


def flipped(b, x):
    return b.call(aten.flip.default, x, [0])


def test_a_sum_over_cases_keeps_products_elementwise():
    """[i in I] * (w * x) is w * ([i in I] * x), as a random map of x would not be."""
    mask, w, x = (algebra.random_vectors([[name]]) for name in (b"m", b"w", b"x"))
    left = algebra.product(mask, algebra.product(w, x))
    assert (left == algebra.product(w, algebra.product(mask, x))).all()


def test_lookups_outside_of_a_table_equal_nothing():
    def single(b, v):
        return b.call(aten.mul.Tensor, looked_up(b, v), 0.0)

    def outside(b, v):
        rows = b.call(aten.index.Tensor, v["table"], [b.call(aten.add.Tensor, v["ids"], WORDS)])
        other = b.call(aten.index.Tensor, v["table"], [b.call(aten.add.Tensor, v["ids"], WORDS)])
        return reduced(b, b.call(aten.sub.Tensor, rows, other))

    report = compared(single, outside, TABLE, {"table": 0})
    assert not report.verdict.runs


def test_two_indices_of_one_value():
    shapes = {**TABLE, "x": (T, H)}

    def single(b, v):
        best = b.call(aten.argmax.default, v["x"], 1)
        other = b.call(aten.index.Tensor, v["table"], [best])
        return b.call(aten.mul.Tensor, looked_up(b, v), other)

    def parallel(b, v):
        best = b.call(aten.argmax.default, v["x"], 1)
        second = masked(b, {**v, "ids": best}, lambda _, x: x)
        return b.call(aten.mul.Tensor, masked(b, v, lambda _, x: x), second)

    right(compared(single, parallel, shapes, {"table": 0}))
