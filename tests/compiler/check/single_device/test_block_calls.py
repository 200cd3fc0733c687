"""What a call is on one block."""

from __future__ import annotations

from fractions import Fraction

import torch

from compiler.check.single_device.block_calls import (
    block_sizes,
    on_cell,
    permutation,
    term_on,
    terms_of,
)
from compiler.check.single_device.cuts import Cuts, Range
from compiler.check.single_device.factors import factors_of
from compiler.ir.mesh import Mesh
from compiler.ir.rules import RESHAPE, Call
from tests.support.graphs import Builder

aten = torch.ops.aten


def called(op, *arguments, shapes):
    b = Builder(Mesh({"tp": 1}))
    call = Call.of(b.call(op, *(b.input(f"i{i}", *s) for i, s in enumerate(shapes)), *arguments))
    return call, factors_of(call)


def test_sizes_of_factors_are_cut_where_labels_say():
    call, factors = called(aten.linear.default, shapes=[(6, 8), (4, 8)])
    block = on_cell(call, factors, ("k", "n"), (2, 1))
    assert block.shapes == ((6, 2), (1, 2))
    assert block.result == (6, 1)


def test_dimensions_cut_at_the_same_fractions_have_sizes_of_their_own():
    call, factors = called(aten.repeat_interleave.self_int, 3, 0, shapes=[(4, 5)])
    block = on_cell(call, factors, (0,), (2,))
    assert (block.shapes[0], block.result) == ((2, 5), (6, 5))


def test_a_mean_keeps_the_number_it_divides_by():
    call, factors = called(aten.mean.dim, [1], shapes=[(4, 6)])
    term = term_on(on_cell(call, factors, (1,), (2,)), factors.rule, 0, 0)
    assert term.coefficient == Fraction(1, 6)


def test_parts_are_told_apart():
    call, factors = called(aten.split.Tensor, 2, 1, shapes=[(4, 6)])
    maps = [terms_of(factors.rule, call, i)[0].map for i in range(3)]
    assert len(set(maps)) == 3
    call, factors = called(aten.view.default, [24], shapes=[(4, 6)])
    assert terms_of(factors.rule, call, 0)[0].map == RESHAPE


def test_orders_of_dimensions():
    _, factors = called(aten.permute.default, [2, 0, 1], shapes=[(2, 3, 4)])
    assert permutation(factors) == (2, 0, 1)
    _, factors = called(aten.neg.default, shapes=[(2, 3)])
    assert permutation(factors) is None


def test_a_factor_that_is_cut_in_two_ways_is_whole():
    cuts = Cuts()
    left, right, other = (cuts.add(8) for _ in range(3))
    for dim, at in ((left, 4), (right, 2), (other, 4)):
        cuts.relate(Range(dim, cuts.add(at), 0, 0, at, cuts=True))
    cuts.solve()
    assert block_sizes(cuts, [(("a",), (left,)), (("a",), (other,))]) == {"a": (4, 4)}
    assert block_sizes(cuts, [(("a",), (left,)), (("a",), (right,))]) == {}
