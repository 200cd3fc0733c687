"""Laws the model must satisfy, and equations that do not hold and must not hold in it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from compiler.check import Verdict, check
from compiler.check.algebra import (
    LANES,
    PRIMES,
    WIDTH,
    Field,
    P,
    added,
    constant,
    element,
    multilinear,
    product,
    random_vectors,
    scaled,
    stretched,
    summed_over,
    vectors,
)
from tests.support.graphs import function

RANKS = 4
GROUPS, OTHER = ((0, 1), (2, 3)), ((0, 2), (1, 3))
KEYS = [[b"f"]]


def varying(name: str) -> Field:
    return random_vectors([[f"{name}{r}".encode()] for r in range(RANKS)])


def replicated(name: str) -> Field:
    return random_vectors([[name.encode()]])


def same(a: Field, b: Field) -> bool:
    assert a.shape[1:] == b.shape[1:] == (1, LANES, WIDTH)
    assert ((a < P) & (b < P)).all()
    return bool((a == b).all())


X, Y, Z, R = varying("x"), varying("y"), varying("z"), replicated("r")
ZERO, ONE = constant(Fraction(0)), constant(Fraction(1))


def test_numbers_that_differ_have_different_elements() -> None:
    """Also those that one prime, above all one next to a power of two, takes for one."""
    near = [2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, PRIMES[0], PRIMES[0] + 1]
    numbers = [Fraction(n) for n in (0, 1, 2, 0.5, 0.1, 1e-5, 2.0**-31, 2.0**-1000, 2.0**1000)]
    numbers += [sign * Fraction(n) for n in near for sign in (1, -1)]
    assert len({element(n).tobytes() for n in numbers}) == len(numbers)


def test_field() -> None:
    assert (element(Fraction(-1)) == P - 1).all()
    assert (element(Fraction(1, 2)) * 2 % P == 1).all()
    assert (element(Fraction(0.1)) * 10 % P != 1).all()  # the float is not the decimal
    assert same(added(X, Y), added(Y, X))
    assert same(added(added(X, Y), Z), added(X, added(Y, Z)))
    assert same(added(X, scaled(X, Fraction(-1))), ZERO)
    assert same(scaled(scaled(X, Fraction(3, 2)), Fraction(2, 3)), X)
    assert same(product(X, added(Y, Z)), added(product(X, Y), product(X, Z)))
    assert same(product(product(X, Y), Z), product(X, product(Z, Y)))
    assert same(product(X, ONE), X)
    assert not same(X, Y)
    assert not same(product(X, X), X)


def test_largest_elements_do_not_overflow() -> None:
    top = np.broadcast_to(P - 1, (RANKS, 1, LANES, WIDTH))
    assert same(product(top, top), ONE)
    assert same(added(top, top), scaled(top, Fraction(2)))
    assert same(scaled(top, Fraction(-1)), ONE)
    assert same(summed_over(top, GROUPS), scaled(top, Fraction(2)))


def test_sums_over_ranks() -> None:
    total = summed_over(X, GROUPS)
    assert (total[0] == total[1]).all()
    assert (total[1] != total[2]).any()
    assert same(summed_over(added(X, Y), GROUPS), added(total, summed_over(Y, GROUPS)))
    assert same(summed_over(R, GROUPS), scaled(R, Fraction(2)))
    assert same(summed_over(total, GROUPS), scaled(total, Fraction(2)))
    assert same(summed_over(product(R, X), GROUPS), product(R, total))
    assert not same(summed_over(product(X, Y), GROUPS), product(total, summed_over(Y, GROUPS)))
    both = summed_over(X, ((0, 1, 2, 3),))
    assert same(summed_over(total, OTHER), both)
    assert same(summed_over(summed_over(X, OTHER), GROUPS), both)
    assert not same(total, summed_over(X, OTHER))


def test_linear_maps() -> None:
    def f(x: Field) -> Field:
        return multilinear(KEYS, [x])

    assert same(f(added(X, Y)), added(f(X), f(Y)))
    assert same(f(scaled(X, Fraction(-5, 4))), scaled(f(X), Fraction(-5, 4)))
    assert same(f(summed_over(X, GROUPS)), summed_over(f(X), GROUPS))
    own = [[b"f%d" % r] for r in range(RANKS)]
    assert not same(
        multilinear(own, [summed_over(X, GROUPS)]), summed_over(multilinear(own, [X]), GROUPS)
    )
    other = multilinear([[b"g"]], [X])
    assert not same(f(X), other)
    assert not same(f(other), multilinear([[b"g"]], [f(X)]))
    assert not same(f(product(X, Y)), product(f(X), f(Y)))


def test_bilinear_maps() -> None:
    def f(x: Field, y: Field) -> Field:
        return multilinear(KEYS, [x, y])

    assert same(f(added(X, Y), Z), added(f(X, Z), f(Y, Z)))
    assert same(f(X, scaled(Y, Fraction(3))), scaled(f(X, Y), Fraction(3)))
    assert same(summed_over(f(X, R), GROUPS), f(summed_over(X, GROUPS), R))
    assert not same(f(X, Y), f(Y, X))
    assert not same(summed_over(f(X, Y), GROUPS), f(summed_over(X, GROUPS), summed_over(Y, GROUPS)))


def test_broadcasts_are_linear_and_keep_constants() -> None:
    def f(x: Field) -> Field:
        return stretched(b"f", x)

    assert same(f(added(X, Y)), added(f(X), f(Y)))
    three = constant(Fraction(3))
    assert same(f(three), three)
    assert not same(f(X), X)
    assert not same(stretched(b"g", X), f(X))


def test_vectors_tell_ranks_apart() -> None:
    assert len(vectors(R)) == 1
    assert len({held for (held,) in vectors(X)}) == RANKS
    assert vectors(summed_over(X, GROUPS))[0] == vectors(summed_over(X, GROUPS))[1]


XY = '%0 "x": f64[4, 4] {tp: V}, %1 "y": f64[4, 4] {tp: V}, %2 "r": f64[4, 4]'
"""Varying, varying, replicated."""

T = "f64[4, 4]"


def program(*steps: str) -> tuple[str, ...]:
    """Lines that number their results from %3; ``AR %n`` is an all_reduce."""
    lines = []
    for number, step in enumerate(steps, 3):
        if step.startswith("AR "):
            step = f"comm.all_reduce({step[3:]}) {{axis = tp, op = sum}}"
        lines.append(f"%{number}: {T} = {step}")
    return (*lines, f"return %{len(steps) + 2}")


TURN, HALF = "aten.permute({}, [1, 0])", "aten.roll({}, [1], [0])"

LAWS = {
    "sum commutes": (("aten.add.Tensor(%0, %1)",), ("aten.add.Tensor(%1, %0)",)),
    "sum associates": (
        ("aten.add.Tensor(%0, %1)", "aten.add.Tensor(%3, %2)"),
        ("aten.add.Tensor(%1, %2)", "aten.add.Tensor(%0, %3)"),
    ),
    "difference is a sum": (
        ("aten.sub.Tensor(%0, %1)",), ("aten.neg(%1)", "aten.add.Tensor(%3, %0)")
    ),
    "product distributes": (
        ("aten.add.Tensor(%0, %1)", "aten.mul.Tensor(%3, %2)"),
        ("aten.mul.Tensor(%0, %2)", "aten.mul.Tensor(%1, %2)", "aten.add.Tensor(%3, %4)"),
    ),
    "matrix product distributes": (
        ("aten.add.Tensor(%0, %1)", "aten.mm(%3, %2)"),
        ("aten.mm(%0, %2)", "aten.mm(%1, %2)", "aten.add.Tensor(%3, %4)"),
    ),
    "reduction distributes": (
        ("AR %0", "AR %1", "aten.add.Tensor(%3, %4)"), ("aten.add.Tensor(%0, %1)", "AR %3")
    ),
    "replicated factor leaves the reduction": (
        ("aten.mul.Tensor(%0, %2)", "AR %3"), ("AR %0", "aten.mul.Tensor(%3, %2)")
    ),
    "replicated matrix leaves the reduction": (
        ("aten.mm(%0, %2)", "AR %3"), ("AR %0", "aten.mm(%3, %2)")
    ),
    "replicated addend is counted once per rank": (
        ("aten.add.Tensor(%0, %2)", "AR %3"),
        ("AR %0", "aten.mul.Tensor(%2, 4)", "aten.add.Tensor(%3, %4)"),
    ),
    "permutation leaves the reduction": (
        (TURN.format("%0"), "AR %3"), ("AR %0", TURN.format("%3"))
    ),
    "where is linear in its branches": (
        ("aten.add.Tensor(%0, %1)", "aten.tril(%3)"),
        ("aten.tril(%0)", "aten.tril(%1)", "aten.add.Tensor(%3, %4)"),
    ),
}  # fmt: skip

NO_LAWS = {
    "nonlinear op of a sum": (("AR %0", "aten.silu(%3)"), ("aten.silu(%0)", "AR %3")),
    "square of a sum": (("AR %0", "aten.mul.Tensor(%3, %3)"), ("aten.mul.Tensor(%0, %0)", "AR %3")),
    "product of sums": (
        ("AR %0", "AR %1", "aten.mul.Tensor(%3, %4)"), ("aten.mul.Tensor(%0, %1)", "AR %3")
    ),
    "varying factor": (
        ("AR %0", "aten.mul.Tensor(%3, %1)"), ("aten.mul.Tensor(%0, %1)", "AR %3")
    ),
    "replicated addend counted once": (
        ("AR %0", "aten.add.Tensor(%3, %2)"), ("aten.add.Tensor(%0, %2)", "AR %3")
    ),
    "transpose and roll do not commute": (
        (TURN.format("%0"), HALF.format("%3")), (HALF.format("%0"), TURN.format("%3"))
    ),
    "matrix product does not commute": (("aten.mm(%0, %1)",), ("aten.mm(%1, %0)",)),
    "matrix product is no product": (("aten.mm(%0, %1)",), ("aten.mul.Tensor(%0, %1)",)),
    "transposed product": (
        ("aten.mm(%0, %1)", TURN.format("%3")), (TURN.format("%0"), "aten.mm(%3, %1)")
    ),
    "transpose is not the identity": ((TURN.format("%0"),), ("aten.alias(%0)",)),
    "division does not commute": (("aten.div.Tensor(%0, %1)",), ("aten.div.Tensor(%1, %0)",)),
    "difference does not commute": (("aten.sub.Tensor(%0, %1)",), ("aten.sub.Tensor(%1, %0)",)),
    "reduction is not idempotent": (("AR %0",), ("AR %0", "AR %3")),
    "alpha counts": (("aten.add.Tensor(%0, %1)",), ("aten.add.Tensor(%0, %1, alpha = 2)",)),
    "absolute values": (("aten.abs(%0)", "AR %3"), ("AR %0", "aten.abs(%3)")),
    "zero is not one": (("aten.mul.Tensor(%0, 0)",), ("aten.mul.Tensor(%0, 1)",)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAWS)
def test_laws(name: str) -> None:
    left, right = (function(XY, *program(*side)) for side in LAWS[name])
    assert check(left, right).verdict is Verdict.EQUIVALENT
    assert check(right, left).verdict is Verdict.EQUIVALENT


@pytest.mark.parametrize("name", NO_LAWS)
def test_equations_that_do_not_hold(name: str) -> None:
    left, right = (function(XY, *program(*side)) for side in NO_LAWS[name])
    assert check(left, right).verdict is Verdict.NOT_EQUIVALENT
    assert check(right, left).verdict is Verdict.NOT_EQUIVALENT
