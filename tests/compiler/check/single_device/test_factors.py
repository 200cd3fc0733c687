"""Factor labels for blocks along every dimension, each against the kernel it speaks of."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from compiler.check.single_device.factors import (
    factors_of,
    leading,
    pieces,
    row_major_groups,
)
from compiler.ir import access
from compiler.ir.mesh import Mesh
from compiler.ir.rules import Call
from tests.support.graphs import Builder

aten = torch.ops.aten

CALLS = {
    "linear with bias": (aten.linear.default, [(3, 4), (6, 4), (6,)], []),
    "addmm": (aten.addmm.default, [(6,), (4, 8), (8, 6)], []),
    "baddbmm": (aten.baddbmm.default, [(2, 4, 6), (2, 4, 8), (2, 8, 6)], []),
    "mean": (aten.mean.dim, [(4, 6)], [[1]]),
    "mean of all": (aten.mean.default, [(4, 6)], []),
    "expand": (aten.expand.default, [(4, 1, 2)], [[4, 6, 2]]),
    "repeat_interleave": (aten.repeat_interleave.self_int, [(4, 6)], [3, 0]),
    "attention of groups": (
        aten.scaled_dot_product_attention.default,
        [(1, 4, 3, 2), (1, 2, 5, 2), (1, 2, 5, 2), (1, 4, 3, 5)], [],
    ),
}  # fmt: skip


def called(op, shapes, arguments):
    b = Builder(Mesh({"tp": 1}))
    options = {"enable_gqa": True} if op is aten.scaled_dot_product_attention.default else {}
    read = [b.input(f"i{i}", *shape) for i, shape in enumerate(shapes)]
    return Call.of(b.call(op, *read, *arguments, **options)), options


def blocks(tensor, labels, factor, number, count):
    """One of ``count`` blocks of a tensor along the dimensions of one factor."""
    for dim, label in enumerate(labels):
        if label == factor:
            size = tensor.shape[dim] // count
            tensor = tensor.narrow(dim, number * size, size)
    return tensor


@pytest.mark.parametrize("name", CALLS)
def test_a_block_of_the_result_is_the_call_on_blocks(name):
    """Or the sum of it over the blocks of what is contracted, an addend once, a mean's n whole."""
    op, shapes, arguments = CALLS[name]
    call, options = called(op, shapes, arguments)
    factors = factors_of(call)
    read = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    whole = op(*read, *arguments, **options)
    names = {x for labels in (*factors.operands, *factors.results) for x in labels} - {None}
    checked = 0
    for factor, count in product(names, (2,)):
        sizes = {
            x.shape[d]
            for x, labels in ((*zip(read, factors.operands, strict=True),
                               (whole, factors.results[0])))
            for d, label in enumerate(labels) if label == factor
        }  # fmt: skip
        if any(size % count for size in sizes):
            continue
        checked += 1
        results = []
        for number in range(count):
            own = [blocks(x, labels, factor, number, count)
                   for x, labels in zip(read, factors.operands, strict=True)]  # fmt: skip
            resized = arguments
            if op is aten.expand.default:
                resized = [list(blocks(whole, factors.results[0], factor, number, count).shape)]
            results.append(op(*own, *resized, **options))
        if factor in factors.results[0]:
            for number, result in enumerate(results):
                block = blocks(whole, factors.results[0], factor, number, count)
                torch.testing.assert_close(result, block)
            continue
        total = sum(results)
        if op in (aten.mean.dim, aten.mean.default):
            total = total / count  # the coefficient is that of the whole
        for x, labels in zip(read, factors.operands, strict=True):
            if factor not in labels and op in (aten.linear.default, aten.addmm.default,
                                               aten.baddbmm.default):  # fmt: skip
                addend = x if x is (read[2] if op is aten.linear.default else read[0]) else None
                total = total if addend is None else total - addend * (count - 1)
        torch.testing.assert_close(total, whole)
    assert checked


def test_a_mask_without_heads_is_whole():
    call, _ = called(
        aten.scaled_dot_product_attention.default,
        [(1, 4, 3, 2), (1, 2, 5, 2), (1, 2, 5, 2), (1, 1, 3, 5)], [],
    )  # fmt: skip
    assert "heads" not in factors_of(call).operands[3]
    assert factors_of(call).results[0][1] == "heads"


def test_random_ops_have_no_factors():
    call, _ = called(aten.bernoulli.default, [(4,)], [])
    assert factors_of(call) is None


@pytest.mark.parametrize(
    ("before", "after", "groups"),
    [
        ((6, 4), (24,), [((0, 1), (0,))]),
        ((2, 12), (2, 3, 4), [((0,), (0,)), ((1,), (1, 2))]),
        ((1, 6), (6,), [((0,), ()), ((1,), (0,))]),
        ((6,), (6, 1), [((0,), (0,)), ((), (1,))]),
        ((4, 6), (6, 4), [((0, 1), (0, 1))]),
    ],
)
def test_views_are_matched_in_groups(before, after, groups):
    assert list(row_major_groups(before, after)) == groups


def test_leading_dimensions_of_a_view():
    assert leading(1, (6, 4), (2, 3, 4)) == 2
    assert leading(2, (2, 3, 4), (6, 4)) == 1
    assert leading(1, (6, 4), (4, 6)) is None


def test_slices_by_rank_begin_where_each_rank_says():
    b = Builder(Mesh({"tp": 2}))
    start, end = access.RankInt(0, (0, 4)), access.RankInt(4, (4, 8))
    node = b.call(aten.slice.Tensor, b.input("x", 8, 3), 0, start, end)
    dim, (piece,) = pieces(Call.of(node))
    assert (dim, piece.starts, piece.length) == (0, (0, 4), 4)
    strided = b.call(aten.slice.Tensor, b.input("y", 8, 3), 0, 0, 8, 2)
    assert pieces(Call.of(strided)) is None
