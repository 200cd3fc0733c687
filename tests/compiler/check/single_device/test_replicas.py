"""Replicas with inputs of their own: each is the model, and none hears of another."""

from __future__ import annotations

import pytest

from compiler.check import Verdict
from compiler.check.single_device import check_single_device
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Replicate, Shard, Varying
from tests.compiler.check.single_device.twins import aten, numbers, right, wrong
from tests.support.graphs import Builder

AXES = {"dp": 2, "tp": 4}
OWN = {"x": {"dp": Varying()}}
H, INNER = 8, 16


def mlp(axes, *reductions, shift=None):
    """A row-parallel product, reduced over axes in turn; a number of each rank's added."""
    b = Builder(Mesh(axes))
    ranks = axes.get("tp", 1)
    x = b.input("x", 4, H, varies=["dp"] if "dp" in axes else [])
    up, down = b.input("up", INNER // ranks, H), b.input("down", H, INNER // ranks)
    y = b.call(aten.silu.default, b.call(aten.linear.default, x, up))
    y = b.call(aten.linear.default, y, down)
    for axis, op in reductions:
        y = b.all_reduce(y, axis, op)
    return b.finish(y if shift is None else b.call(aten.add.Tensor, y, shift))


SINGLE = mlp({"tp": 1})


def test_replicas_with_inputs_of_their_own_are_models():
    right(check_single_device(SINGLE, mlp(AXES, ("tp", "sum")), OWN))
    wrong(check_single_device(SINGLE, mlp(AXES), OWN))
    wrong(check_single_device(SINGLE, mlp(AXES, ("tp", "sum"), ("tp", "sum")), OWN))


def test_replicas_that_are_averaged_are_not():
    """Of the same inputs the mean over replicas is what each has; of their own it is not."""
    averaged = mlp(AXES, ("tp", "sum"), ("dp", "avg"))
    right(check_single_device(SINGLE, averaged, {"x": Replicate()}))
    report = check_single_device(SINGLE, averaged, OWN)
    assert report.verdict is Verdict.UNPROVED
    assert "joins ranks of several replicas" in report.explanation


@pytest.mark.parametrize("values", [(0,) * 4 + (1,) * 4, (1,) * 4 + (0,) * 4])
def test_every_replica_is_looked_at(values):
    """One of them adds a number to what it computes."""
    single = mlp({"tp": 1}, shift=0)
    wrong(check_single_device(single, mlp(AXES, ("tp", "sum"), shift=numbers(*values)), OWN))
    right(check_single_device(single, mlp(AXES, ("tp", "sum"), shift=numbers(*(0,) * 8)), OWN))


def test_replicas_of_one_rank():
    """Without another axis the replicas are what one device has."""
    right(check_single_device(SINGLE, mlp({"dp": 2}), OWN))
    assert (
        check_single_device(SINGLE, mlp({"dp": 2}, ("dp", "sum")), OWN).verdict is Verdict.UNPROVED
    )


def experts(b, ranks_e, ranks_t, *reductions):
    """Experts dealt out along one axis, each sliced along the other."""
    e, inner = 4 // ranks_e, INNER // ranks_t
    x = b.input("x", 1, 4, H)
    up, down = b.input("up", e, H, inner), b.input("down", e, inner, H)
    own = b.call(aten.expand.default, x, [e, 4, H])
    y = b.call(aten.silu.default, b.call(aten.bmm.default, own, up))
    y = b.call(aten.sum.dim_IntList, b.call(aten.bmm.default, y, down), [0])
    for axis in reductions:
        y = b.all_reduce(y, axis)
    return b.finish(y)


GRID = {"ep": 2, "tp": 4}


@pytest.mark.parametrize(
    ("reductions", "check"),
    [(("ep", "tp"), right), (("tp", "ep"), right), (("tp",), wrong), (("ep",), wrong),
     (("ep", "tp", "tp"), wrong)],
)  # fmt: skip
def test_tensors_are_cut_along_two_axes(reductions, check):
    single = experts(Builder(Mesh({"tp": 1})), 1, 1)
    check(check_single_device(single, experts(Builder(Mesh(GRID)), 2, 4, *reductions)))


def test_tensors_are_cut_along_two_axes_as_declared():
    """With axes of one size shapes do not say which is which."""
    square, single = {"ep": 2, "tp": 2}, experts(Builder(Mesh({"tp": 1})), 1, 1)
    held = {"up": {"ep": Shard(0), "tp": Shard(2)}, "down": {"ep": Shard(0), "tp": Shard(1)}}
    crossed = held | {"down": {"tp": Shard(0), "ep": Shard(1)}}
    for inputs, check in ((held, right), (crossed, wrong)):
        parallel = experts(Builder(Mesh(square)), 2, 2, "ep", "tp")
        check(check_single_device(single, parallel, inputs))
