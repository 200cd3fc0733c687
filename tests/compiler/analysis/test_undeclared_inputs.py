"""The warning of graphs that do not say which inputs differ between ranks."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from compiler import Mesh, Replicate, Shard, check_equivalence, lint, optimize_graph
from compiler.analysis.undeclared_inputs import undeclared
from compiler.errors import UndeclaredInputs
from tests.support.graphs import function

MM = "%2: f32[4, 4] = aten.mm(%0, %1)"
SUM = "%3: f32[4, 4] = comm.all_reduce(%2) {axis = tp, op = sum}"
MESH = Mesh({"tp": 4})


def graph(x: str = "R", w: str = "R") -> Any:
    inputs = f'%0 "x": f32[4, 4] {{tp: {x}}}, %1 "w": f32[4, 4] {{tp: {w}}}'
    return function(inputs, MM, SUM, "return %3")


def test_the_message_names_real_inputs() -> None:
    assert str(undeclared(graph())) == (
        "no input differs between the ranks of a collective, by what is declared: if weights are "
        "sharded, every verdict and finding is about another graph\n"
        "  where: all_reduce %v3 over 'tp'\n"
        "  found: along it all 2 inputs are Replicate, as is every placeholder that inputs= "
        "leaves out\n"
        '  remedy: declare what is cut, for example inputs={"w": Shard(0), "x": Shard(0)} '
        "(--input w=S(0)), or Varying() where ranks hold values of their own; if all are the "
        'same, {"*": Replicate()}'
    )


@pytest.mark.parametrize("placement", ["V", "S(0)", "P"])
def test_one_input_that_differs_is_enough(placement: str) -> None:
    assert undeclared(graph(w=placement)) is None


def test_other_axes_than_that_of_the_collective_do_not_count() -> None:
    inputs = '%0 "x": f32[4, 4] {dp: V, tp: R}, %1 "w": f32[4, 4] {dp: R, tp: R}'
    found = undeclared(function(inputs, MM, SUM, "return %3", mesh="mesh <dp = 2, tp = 4>"))
    assert found is not None
    assert 'inputs={"w": {"tp": Shard(0)}' in found.remedy
    assert "--input w=tp:S(0)" in found.remedy


def test_ranks_that_differ_by_numbers_or_slices_of_their_own_are_not_alike() -> None:
    for own, rows in (
        ("aten.mul.Tensor(%0, rank(0, 1, 2, 3))", 4),
        ('commplan.all_slice(%0, 0, 4, "tp")', 16),
    ):
        cut, total = f"%1: f32[4, 4] = {own}", SUM.replace("%2", "%1").replace("%3", "%2")
        assert undeclared(function(f'%0 "x": f32[{rows}, 4]', cut, total, "return %2")) is None


@pytest.mark.parametrize("door", ["optimize_graph", "lint", "check_equivalence"])
def test_every_door_warns_unless_all_is_declared(door: str) -> None:
    module = graph().module
    call: Any = {
        "optimize_graph": lambda **more: optimize_graph(module, mesh=MESH, **more),
        "lint": lambda **more: lint(module, mesh=MESH, **more),
        "check_equivalence": lambda **more: check_equivalence(module, module, mesh=MESH, **more),
    }[door]
    with pytest.warns(UndeclaredInputs, match="no input differs") as caught:
        call()
    assert caught[0].filename == __file__
    with pytest.warns(UndeclaredInputs):
        call(inputs={"x": Replicate()})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(inputs={"*": Replicate()})
        call(inputs={"w": Shard(0)})
