"""Laws of blocks, each with a wrong law beside it that a value tells apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compiler.check import algebra
from compiler.check.single_device import grid
from compiler.check.single_device.cuts import Cuts, Range
from compiler.check.single_device.evaluate import Evaluation, Shared
from compiler.check.single_device.relations import Dimensions
from compiler.ir import access
from compiler.ir.mesh import Mesh
from tests.compiler.check.single_device.twins import RANKS, compared, right, wrong
from tests.support.graphs import Builder

aten = torch.ops.aten


def evaluated(builder, returned, *cut_at, ranks=1):
    """Values of a graph, some of its dimensions cut: (node, dimension, index)."""
    cuts = Cuts()
    dimensions = Dimensions(builder.finish(returned), cuts)
    for node, dim, at in cut_at:
        cuts.relate(Range(dimensions.of(node)[dim], cuts.add(at), 0, 0, at, cuts=True))
    cuts.solve()

    def leaf(node):
        sizes = tuple(map(len, dimensions.blocks(node)))
        keys = [[f"{node.target} {r} {at}".encode() for at in np.ndindex(*sizes)]
                for r in range(ranks)]  # fmt: skip
        return grid.shaped(algebra.random_vectors(keys), sizes)

    return Evaluation(dimensions, leaf, Shared(), defines=True)


def test_a_product_is_the_sum_of_products_of_blocks():
    b = Builder(Mesh({"tp": 1}))
    x, y = b.input("x", 4, 8), b.input("y", 8, 6)
    left, right = b.call(aten.slice.Tensor, x, 1, 0, 4), b.call(aten.slice.Tensor, y, 0, 0, 4)
    rest = b.call(aten.slice.Tensor, x, 1, 4, 8), b.call(aten.slice.Tensor, y, 0, 4, 8)
    whole = b.call(aten.mm.default, x, y)
    total = b.call(
        aten.add.Tensor, b.call(aten.mm.default, left, right), b.call(aten.mm.default, *rest)
    )
    crossed = b.call(aten.mm.default, left, rest[1])
    once = b.call(aten.add.Tensor, whole, b.call(aten.add.Tensor, total, crossed))
    values = evaluated(b, once, (x, 1, 4))
    assert (values.data(whole) == values.data(total)).all()
    assert (values.data(whole) != values.data(crossed)).any()


def test_an_addend_is_added_once():
    b = Builder(Mesh({"tp": 1}))
    x, w, bias = b.input("x", 4, 8), b.input("w", 6, 8), b.input("bias", 6)
    fused = b.call(aten.linear.default, x, w, bias)
    apart = b.call(aten.add.Tensor, b.call(aten.linear.default, x, w), bias)
    twice = b.call(aten.add.Tensor, apart, bias)
    values = evaluated(b, b.call(aten.add.Tensor, fused, twice), (x, 1, 4))
    assert (values.data(fused) == values.data(apart)).all()
    assert (values.data(fused) != values.data(twice)).any()


def test_a_function_along_a_dimension_joins_its_blocks():
    b = Builder(Mesh({"tp": 1}))
    x = b.input("x", 4, 8)
    rows = b.call(aten.softmax.int, b.call(aten.slice.Tensor, x, 0, 0, 2), 1)
    own = b.call(aten.slice.Tensor, b.call(aten.softmax.int, x, 1), 0, 0, 2)
    part = b.call(aten.softmax.int, b.call(aten.slice.Tensor, x, 1, 0, 4), 1)
    cols = b.call(aten.slice.Tensor, b.call(aten.softmax.int, x, 1), 1, 0, 4)
    ends = [b.call(aten.sum.default, v) for v in (rows, own, part, cols)]
    total = b.call(aten.stack.default, ends)
    values = evaluated(b, total, (x, 0, 2), (x, 1, 4))
    assert (values.data(rows) == values.data(own)).all()
    assert (values.data(part) != values.data(cols)).any()


def test_splitting_and_joining_again_is_nothing_but_in_order():
    b = Builder(Mesh({"tp": 1}))
    x = b.input("x", 4, 8)
    parts = [b.call(aten.slice.Tensor, x, 1, i, i + 4) for i in (0, 4)]
    back = b.call(aten.cat.default, parts, 1)
    turned = b.call(aten.cat.default, parts[::-1], 1)
    both = b.call(aten.add.Tensor, x, b.call(aten.add.Tensor, back, turned))
    values = evaluated(b, both, (x, 1, 4))
    assert (values.data(back) == values.data(x)).all()
    assert (values.data(turned) != values.data(x)).any()


def test_numbers_of_ranks_are_added_on_each():
    b = Builder(Mesh({"tp": 2}))
    ids = b.input("ids", 4, dtype=torch.int64)
    moved = b.call(aten.sub.Tensor, ids, access.RankInt(0, (0, 4)))
    values = evaluated(b, moved)
    data, own = values.data(moved), values.data(ids)
    assert (data[0] == own[0]).all()
    assert (algebra.added(data[1], algebra.constant(4)[0]) == own[0]).all()


def test_collectives_are_what_they_are_defined_as():
    b = Builder(Mesh({"tp": 2}))
    x = b.input("x", 4, 8, varies=("tp",))
    total, scattered = b.all_reduce(x), b.reduce_scatter(x)
    gathered, sent = b.all_gather(scattered), b.broadcast(x, 1)
    mean, most = b.all_reduce(x, op="avg"), b.all_reduce(x, op="max")
    used = b.call(aten.stack.default, [total, gathered, sent, mean, most])
    values = evaluated(b, used, ranks=2)
    data = {n: values.data(n) for n in (x, total, scattered, gathered, sent, mean, most)}
    assert (data[total] == algebra.summed_over(data[x], [(0, 1)])).all()
    assert (data[gathered] == data[total]).all()
    assert (data[scattered][1] == data[total][0, 1:]).all()
    assert (data[sent] == data[x][1]).all()
    assert (algebra.added(data[mean], data[mean]) == data[total]).all()
    assert (data[most] != data[total]).any()


def test_an_op_without_a_rule_is_another_function_on_every_rank():
    b = Builder(Mesh({"tp": 2}))
    x = b.input("x", 4, 4)
    unknown = b.call(aten.linalg_cross.default, b.call(aten.slice.Tensor, x, 1, 0, 3),
                     b.call(aten.slice.Tensor, x, 1, 1, 4))  # fmt: skip
    values = evaluated(b, unknown)
    assert (values.data(unknown)[0] != values.data(unknown)[1]).any()


def exchanged(b, x, n, rows, columns):
    """Rows of all columns become all rows of some columns."""
    split = b.call(aten.view.default, x, [rows, n, columns // n])
    parts = b.call(aten.clone.default, b.call(aten.transpose.int, split, 0, 1),
                   memory_format=torch.contiguous_format)  # fmt: skip
    sent = b.all_to_all(b.call(aten.view.default, parts, [n * rows, columns // n]))
    return sent


def back(b, x, n, rows, columns):
    """All rows of some columns become rows of all columns."""
    got = b.call(aten.view.default, b.all_to_all(x), [n, rows, columns // n])
    moved = b.call(aten.clone.default, b.call(aten.transpose.int, got, 0, 1),
                   memory_format=torch.contiguous_format)  # fmt: skip
    return b.call(aten.view.default, moved, [rows, columns])


@pytest.mark.parametrize(
    ("returns", "turns", "check"), [(True, 0, right), (True, 1, wrong), (False, 0, wrong)]
)
def test_rows_are_exchanged_for_columns_and_back(returns, turns, check):
    """A running sum over rows, of which every rank has some."""
    rows, columns = 2, 8
    shapes = {"rows": (RANKS * rows, columns)}

    def single(b, v):
        return b.call(aten.cumsum.default, v["rows"], 0)

    def parallel(b, v):
        x = exchanged(b, v["rows"], RANKS, rows, columns)
        y = b.call(aten.cumsum.default, x, 0)
        y = b.call(aten.roll.default, y, [turns * rows], [0]) if turns else y
        return (
            back(b, y, RANKS, rows, columns)
            if returns
            else b.call(aten.view.default, y, [rows, columns])
        )

    check(compared(single, parallel, shapes, {"rows": 0}))
