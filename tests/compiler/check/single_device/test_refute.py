"""Counterexamples: inputs of one device, cut out for each rank."""

from __future__ import annotations

import pytest
import torch

from compiler.check import Verdict
from compiler.check.single_device import check_single_device
from compiler.check.single_device.layouts import Layout
from compiler.check.single_device.refute import shards_of
from compiler.ir.mesh import Mesh
from tests.compiler.check.single_device.twins import RANKS, aten, graph
from tests.support.graphs import Builder, function


def test_ranks_hold_their_segments():
    whole = torch.arange(8).reshape(2, 4)
    parts = shards_of(whole, Layout(1, (((0, 1), (2, 1)), ((1, 1), (3, 1)))), 2)
    assert [p.tolist() for p in parts] == [[[0, 2], [4, 6]], [[1, 3], [5, 7]]]
    assert shards_of(whole, Layout(), 3) == [whole] * 3


def test_models_that_are_too_large_are_not_simulated():
    def single(b, v):
        return b.call(aten.relu.default, v["x"])

    shapes = {"x": (1 << 14, 1 << 12)}
    report = check_single_device(graph(single, shapes), graph(lambda b, v: v["x"], shapes, RANKS))
    assert report.verdict is Verdict.UNPROVED
    assert "Not simulated: the inputs take 512 MiB" in report.explanation


def random(ranks):
    b = Builder(Mesh({"tp": ranks}))
    x = b.input("x", 4, 4)
    return b.finish(b.call(aten.mul.Tensor, x, b.call(aten.rand_like.default, x)))


@pytest.mark.parametrize("ranks", [1, RANKS])
def test_random_numbers_refute_nothing(ranks):
    single = graph(lambda b, v: v["x"], {"x": (4, 4)})
    report = check_single_device(single, random(ranks))
    assert report.verdict is Verdict.UNPROVED
    assert "depends on random numbers" in report.explanation


TABLE = torch.arange(4.0, dtype=torch.float64)


def shifted(mesh, line):
    lines = f"%2: f64[4] = {line}", "%3: f64[4] = aten.add.Tensor(%0, %2)", "return (%3,)"
    return function('%0 "x": f64[4], %1 "c": f64[4]', *lines, mesh=mesh)


def test_constants_of_the_code_have_their_values():
    """The sum is not proved the same, but no counterexample is made of other constants."""
    single = shifted("mesh <tp = 1>", "aten.mul.Tensor(%1, 1)")
    flipped = shifted("mesh <tp = 4>", "aten.flip(%1, [0])")
    for constant, verdict in ((TABLE.flip(0), Verdict.UNPROVED), (TABLE, Verdict.NOT_EQUIVALENT)):
        constants = {"c": TABLE}, {"c": constant}
        assert check_single_device(single, flipped, None, constants).verdict is verdict
