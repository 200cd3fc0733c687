"""The greatest of all is the greatest of what is greatest in parts."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.check import algebra
from compiler.check.single_device.extrema import Extrema
from tests.compiler.check.single_device.twins import aten, compared, reduced, right, wrong

T, H = 4, 8
A, B, C = (algebra.random_vectors([[name]])[0, 0] for name in (b"a", b"b", b"c"))


def test_maxima_are_of_sets():
    extrema = Extrema()

    def of(*members, kind="max"):
        return extrema.of(kind, np.stack(members))

    whole = of(A, B, C)
    assert (whole == of(C, of(A, B), B)).all()
    assert (of(A, A) == A).all()
    assert not (whole == of(A, B)).all()
    assert not (whole == of(A, B, C, kind="min")).all()
    assert not (of(of(A, B), C, kind="min") == of(A, B, C, kind="min")).all()


def test_over_the_ranks_of_each_group():
    x = np.stack([A, B, C, A])[:, None]
    extrema = Extrema()
    total = extrema.over("max", x, [[0, 3], [1, 2]])
    assert (total[[0, 3]] == A).all()
    assert (total[1] == total[2]).all()
    assert (total[1, 0] == extrema.of("max", np.stack([C, B]))).all()


SHAPES = {"x": (T, H), "w": (16, H)}


def greatest(b, v, op=aten.amax.default, keeps=False):
    return b.call(op, b.call(aten.linear.default, v["x"], v["w"]), [1], keeps)


@pytest.mark.parametrize(
    ("reductions", "check"),
    [(("max",), right), (("max", "max"), right), ((), wrong), (("min",), wrong), (("sum",), wrong)],
)
def test_the_greatest_of_columns_that_are_sharded(reductions, check):
    def parallel(b, v):
        y = greatest(b, v)
        for op in reductions:
            y = reduced(b, y, op)
        return y

    check(compared(greatest, parallel, SHAPES, {"w": 0}))


def test_the_greatest_of_partial_sums_is_another():
    """Of rows sharded by what they contract, each rank has a summand of every entry."""
    shapes = {"x": (T, H), "w": (16, H)}

    def parallel(b, v):
        own = b.call(aten.linear.default, v["x"], v["w"])
        return reduced(b, b.call(aten.amax.default, own, [1]), "max")

    wrong(compared(greatest, parallel, shapes, {"w": 1, "x": 1}))


@pytest.mark.parametrize(
    ("op", "kind", "check"),
    [(aten.max.default, "max", right), (aten.min.default, "min", right),
     (aten.max.default, "min", wrong)],
)  # fmt: skip
def test_least_and_greatest_of_everything(op, kind, check):
    def alone(b, v):
        return b.call(op, b.call(aten.linear.default, v["x"], v["w"]))

    check(compared(alone, lambda b, v: reduced(b, alone(b, v), kind), SHAPES, {"w": 0}))


def vocabulary_softmax(b, x, total=lambda y: y, top=lambda y: y):
    """As one writes it out: in front of the exponential, the greatest is taken away."""
    m = top(b.call(aten.amax.default, x, [1], True))
    e = b.call(aten.exp.default, b.call(aten.sub.Tensor, x, m))
    return b.call(aten.div.Tensor, e, total(b.call(aten.sum.dim_IntList, e, [1], True)))


@pytest.mark.parametrize("fused", [None, aten.softmax.int, aten.log_softmax.int])
def test_a_softmax_over_columns_that_are_sharded(fused):
    def alone(b, v):
        own = b.call(aten.linear.default, v["x"], v["w"])
        return vocabulary_softmax(b, own) if fused is None else b.call(fused, own, 1)

    def parallel(b, v, op="max", sums=True):
        own = b.call(aten.linear.default, v["x"], v["w"])
        total = (lambda y: reduced(b, y)) if sums else (lambda y: y)
        probabilities = vocabulary_softmax(b, own, total, lambda y: reduced(b, y, op))
        if fused is not aten.log_softmax.int:
            return probabilities
        m = reduced(b, b.call(aten.amax.default, own, [1], True), op)
        less = b.call(aten.sub.Tensor, own, m)
        e = b.call(aten.sum.dim_IntList, b.call(aten.exp.default, less), [1], True)
        return b.call(aten.sub.Tensor, less, b.call(aten.log.default, total(e)))

    right(compared(alone, parallel, SHAPES, {"w": 0}))
    wrong(compared(alone, lambda b, v: parallel(b, v, sums=False), SHAPES, {"w": 0}))
    if fused is None:
        wrong(compared(alone, lambda b, v: parallel(b, v, "sum", sums=False), SHAPES, {"w": 0}))
