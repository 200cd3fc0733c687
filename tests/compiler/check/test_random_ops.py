"""Random ops are functions of their operands that nobody knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import fx

from compiler.check import Verdict, check
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import Mesh
from tests.support.graphs import Builder, aten

Drawn = Callable[[Builder, fx.Node], fx.Node]

SAMPLES: dict[str, Drawn] = {
    "multinomial": lambda b, x: b.call(
        aten.multinomial.default, b.call(aten._softmax.default, x, -1, False), 1
    ),
    "dropout": lambda b, x: b.call(aten.dropout.default, x, 0.5, True),
    "bernoulli": lambda b, x: b.call(aten.bernoulli.p, x, 0.5),
    "normal": lambda b, x: b.call(aten.normal.Tensor_float, x, 1.0),
}
FRESH: dict[str, Drawn] = {
    "rand_like": lambda b, x: b.call(aten.rand_like.default, x),
    "empty_like": lambda b, x: b.call(aten.empty_like.default, x),
}


def drawn(make: Drawn, *, reduced: bool) -> SpmdGraph:
    """Something drawn from ``x``, or from its sum."""
    build = Builder(Mesh({"tp": 4}))
    x = build.input("x", 6, 8, varies=("tp",))
    total = build.all_reduce(x)
    return build.finish(make(build, total if reduced else x), total)


@pytest.mark.parametrize("make", SAMPLES.values(), ids=SAMPLES)
def test_what_is_drawn_depends_on_what_it_is_drawn_from(make: Drawn) -> None:
    assert check(drawn(make, reduced=True), drawn(make, reduced=False)).verdict is Verdict.UNPROVED
    assert check(drawn(make, reduced=True), doubled(make)).verdict is Verdict.EQUIVALENT


@pytest.mark.parametrize("make", FRESH.values(), ids=FRESH)
def test_of_others_shapes_alone_count(make: Drawn) -> None:
    found = check(drawn(make, reduced=True), drawn(make, reduced=False))
    assert found.verdict is Verdict.EQUIVALENT


def doubled(make: Drawn) -> SpmdGraph:
    """The same drawn from the same, computed otherwise: the sum of halves."""
    build = Builder(Mesh({"tp": 4}))
    x = build.input("x", 6, 8, varies=("tp",))
    half = build.all_reduce(build.call(aten.mul.Tensor, x, 0.5))
    total = build.call(aten.add.Tensor, half, half)
    return build.finish(make(build, total), total)


def test_two_runs_have_no_random_numbers_in_common() -> None:
    """Outputs that depend on some are no counterexample; others may be."""

    def graph(scale: float, *, twice: bool = False) -> SpmdGraph:
        build = Builder(Mesh({"tp": 4}))
        x = build.input("x", 4, 4)
        y: Any = x
        for _ in range(2 if twice else 0):  # no law says that this is x
            y = build.call(aten.flip.default, y, [0])
        noisy = build.call(aten.add.Tensor, y, build.call(aten.rand_like.default, x))
        return build.finish(noisy, build.call(aten.mul.Tensor, x, scale))

    assert check(graph(1.0), graph(1.0, twice=True)).verdict is Verdict.UNPROVED
    found = check(graph(1.0), graph(2.0, twice=True))
    assert found.verdict is Verdict.NOT_EQUIVALENT
    assert found.counterexample is not None
    assert found.counterexample.output == 1
    alone = check(drawn(SAMPLES["dropout"], reduced=True), drawn(SAMPLES["normal"], reduced=True))
    assert alone.verdict is Verdict.UNPROVED


def test_where_every_output_is_random_nothing_is_simulated() -> None:
    def graph(scale: float) -> SpmdGraph:
        build = Builder(Mesh({"tp": 4}))
        x = build.input("x", 4, 4)
        return build.finish(
            build.call(aten.mul.Tensor, build.call(aten.rand_like.default, x), scale)
        )

    found = check(graph(1.0), graph(2.0))
    assert found.verdict is Verdict.UNPROVED
    assert "Not simulated: every output depends on random numbers" in found.explanation
