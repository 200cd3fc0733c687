"""What calls and collectives say about where their dimensions are cut."""

from __future__ import annotations

import operator

import torch

from compiler.check.single_device.cuts import Cuts, Range
from compiler.check.single_device.relations import Dimensions
from compiler.ir.mesh import Mesh
from tests.support.graphs import Builder

aten = torch.ops.aten


def cut(builder, returned, node, dim, at):
    """The blocks of every dimension of a node, after one dimension of another was cut."""
    graph = builder.finish(returned)
    cuts = Cuts()
    dimensions = Dimensions(graph, cuts)
    number = dimensions.of(node)[dim]
    cuts.relate(Range(number, cuts.add(at), 0, 0, at, cuts=True))
    cuts.solve()
    return dimensions


def test_heads_are_found_through_a_product_and_a_view():
    b = Builder(Mesh({"tp": 1}))
    x, w = b.input("x", 6, 8), b.input("w", 8, 8)
    flat = b.call(aten.linear.default, x, w)
    heads = b.call(aten.transpose.int, b.call(aten.view.default, flat, [6, 4, 2]), 0, 1)
    dimensions = cut(b, heads, w, 0, 4)
    assert dimensions.blocks(heads) == [(2, 2), (6,), (2,)]
    assert dimensions.blocks(x) == [(6,), (8,)]


def test_gathers_and_scatters_cut_wholes_into_parts():
    b = Builder(Mesh({"tp": 4}))
    x = b.input("x", 8, 2)
    part = b.reduce_scatter(x)
    whole = b.all_gather(part)
    cuts = Cuts()
    dimensions = Dimensions(b.finish(whole), cuts)
    cuts.solve()
    assert dimensions.blocks(whole)[0] == dimensions.blocks(x)[0] == (2, 2, 2, 2)
    assert dimensions.blocks(part)[0] == (2,)


def test_splits_hand_on_what_is_cut_and_cut_nothing_themselves():
    b = Builder(Mesh({"tp": 1}))
    x = b.input("x", 4, 8)
    parts = b.call(aten.split.Tensor, x, 4, 1)
    first = b.call(operator.getitem, parts, 0)
    dimensions = cut(b, first, first, 1, 2)
    assert dimensions.blocks(x)[1] == (2, 2, 4)
    assert dimensions.splits(dimensions.of(x)[1]) == [(4, 4)]
    b = Builder(Mesh({"tp": 1}))
    x = b.input("x", 4, 8)
    first = b.call(operator.getitem, b.call(aten.split.Tensor, x, 4, 1), 0)
    assert cut(b, first, x, 0, 2).blocks(x) == [(2, 2), (8,)]


def test_columns_that_are_put_side_by_side_cut_what_they_become():
    b = Builder(Mesh({"tp": 1}))
    x = b.input("x", 4, 3)
    for dim, blocks in ((1, (3, 3)), (0, (4,))):
        parts = b.call(aten.split.Tensor, x, 2, 0)
        joined = b.call(aten.cat.default, [b.call(operator.getitem, parts, i) for i in (0, 1)], dim)
        cuts = Cuts()
        dimensions = Dimensions(b.finish(joined), cuts)
        cuts.solve()
        assert dimensions.blocks(joined)[dim] == blocks
        b = Builder(Mesh({"tp": 1}))
        x = b.input("x", 4, 3)
