"""Writes are what is there afterwards: a choice, or what was written."""

import operator

import pytest
import torch

from compiler.check import check
from compiler.check.simulate import simulate
from compiler.check.single_device.writes import without_writes
from compiler.ir.mesh import Mesh
from tests.support.graphs import Builder

aten = torch.ops.aten


def written(mask_shape, number=(), dtype=torch.float64):
    b = Builder(Mesh({"tp": 1}))
    x, mask = b.input("x", 3, 4), b.input("mask", *mask_shape, dtype=torch.bool)
    return b.finish(
        b.call(aten.index_put.default, x, [mask], b.input("number", *number, dtype=dtype))
    )


def test_the_choice_computes_what_the_write_does():
    for mask_shape in ((3,), (3, 4)):
        source = written(mask_shape)
        target = without_writes(source)
        assert aten.where.self in {n.target for n in target.graph.nodes}
        mask = torch.arange(12).reshape(3, 4).remainder(2).bool()
        drawn = {
            "x": [torch.randn(3, 4, dtype=torch.float64)],
            "mask": [mask if mask_shape == (3, 4) else mask[:, 1]],
            "number": [torch.tensor(7.0, dtype=torch.float64)],
        }
        before, after = (simulate(graph, drawn)[0][0] for graph in (source, target))
        assert torch.equal(before, after)


def test_other_writes_stay():
    for source in (written((3,), number=(4,)), written((3, 4), dtype=torch.float32)):
        assert (
            without_writes(source) is source or check(source, without_writes(source)).verdict.runs
        )
        assert aten.where.self not in {n.target for n in without_writes(source).graph.nodes}


def ranges(*places, dim=1):
    """Writes of tensors to ranges of a dimension, one after the other."""
    b = Builder(Mesh({"tp": 1}))
    x = b.input("x", 3, 6)
    for i, (start, end) in enumerate(places):
        taken = len(range(6)[slice(start, end)])
        x = b.call(aten.slice_scatter.default, x, b.input(f"part{i}", 3, taken), dim, start, end)
    return b.finish(x)


@pytest.mark.parametrize(
    ("places", "whole"),
    [
        ([(0, 2), (2, 2**63 - 1)], True),
        ([(4, 6), (0, 4)], True),
        ([(-2, None), (0, 4)], True),
        ([(0, 2), (3, 6)], False),
        ([(0, 3), (2, 6)], False),
        ([(2, 6)], False),
    ],
)
def test_ranges_that_are_all_of_a_dimension_leave_nothing_of_it(places, whole):
    source = ranges(*places)
    target = without_writes(source)
    assert (aten.cat.default in {n.target for n in target.graph.nodes}) is whole
    drawn = {"x": [torch.randn(3, 6, dtype=torch.float64)]}
    for i, place in enumerate(places):
        drawn[f"part{i}"] = [torch.randn(3, len(range(6)[slice(*place)]), dtype=torch.float64)]
    before, after = (simulate(graph, drawn)[0][0] for graph in (source, target))
    assert torch.equal(before, after)


@pytest.mark.parametrize(
    ("order", "dim", "whole"),
    [((0, 1, 2), 1, True), ((0, 1, 2), -1, True), ((0, 1), 1, False), ((0, 2, 1), 1, False),
     ((0, 1, 2), 0, False)],
)  # fmt: skip
def test_all_parts_of_a_split_in_order_are_the_whole(order, dim, whole):
    b = Builder(Mesh({"tp": 1}))
    parts = b.call(aten.split.Tensor, b.input("x", 3, 6), 2, 1)
    joined = b.call(aten.cat.default, [b.call(operator.getitem, parts, i) for i in order], dim)
    source = b.finish(joined)
    target = without_writes(source)
    assert (aten.cat.default not in {n.target for n in target.graph.nodes}) is whole
    drawn = {"x": [torch.arange(18, dtype=torch.float64).reshape(3, 6)]}
    before, after = (simulate(graph, drawn)[0][0] for graph in (source, target))
    assert torch.equal(before, after)


@pytest.mark.parametrize(
    ("empty", "dtype", "whole"),
    [((0,), torch.float64, True), ((0, 6), torch.float64, False), ((0,), torch.int64, True),
     ((1, 6), torch.float64, False)],
)  # fmt: skip
def test_a_tensor_beside_ones_of_no_elements_is_all_that_is_joined(empty, dtype, whole):
    b = Builder(Mesh({"tp": 1}))
    parts = [b.input("nothing", *empty, dtype=dtype), b.input("x", 3, 6)]
    target = without_writes(b.finish(b.call(aten.cat.default, parts)))
    assert (aten.cat.default not in {n.target for n in target.graph.nodes}) is whole


def test_what_joining_converts_is_not_what_was_there():
    b = Builder(Mesh({"tp": 1}))
    parts = [b.input("nothing", 0), b.input("x", 3, 6, dtype=torch.int64)]
    source = b.finish(b.call(aten.cat.default, parts))
    assert without_writes(source) is source
