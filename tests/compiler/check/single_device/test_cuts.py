"""Points at which dimensions are cut, handed on between them."""

from fractions import Fraction
from itertools import pairwise

import sympy

from compiler.check.single_device.cuts import (
    Cuts,
    Range,
    View,
    is_contiguous,
    ratio,
    row_major_points,
)

F = Fraction


def cut(size, *points):
    """One dimension that is cut at some rows."""
    cuts = Cuts()
    dim, ends = cuts.add(size), [0, *points, size]
    for start, end in pairwise(ends):
        cuts.relate(Range(dim, cuts.add(end - start), start, 0, end - start, cuts=True))
    return cuts, dim


def test_dimensions_of_one_factor_share_fractions():
    cuts, query = cut(8, 4)
    key, one = cuts.add(2), cuts.add(1)
    cuts.unite((query, key, one))
    cuts.solve()
    assert cuts.blocks(key) == (1, 1)
    assert cuts.blocks(query) == (4, 4)
    assert cuts.blocks(one) == (1,)


def test_a_point_that_one_of_them_cannot_have_is_left_out():
    cuts, query = cut(8, 2)
    key = cuts.add(2)
    cuts.unite((query, key))
    cuts.solve()
    assert cuts.blocks(key) == (2,)
    assert cuts.blocks(query) == (8,)


def test_ranges_hand_points_on_in_both_directions():
    cuts = Cuts()
    whole, first, second = cuts.add(16), cuts.add(8), cuts.add(8)
    cuts.relate(Range(whole, first, 0, 0, 8))
    cuts.relate(Range(whole, second, 8, 0, 8))
    quarter = cuts.add(2)
    cuts.relate(Range(first, quarter, 4, 0, 2, cuts=True))
    cuts.solve()
    assert cuts.blocks(first) == (4, 2, 2)
    assert cuts.blocks(whole) == (4, 2, 2, 8)
    assert cuts.blocks(second) == (8,)
    assert cuts.offsets(whole) == [0, 4, 6, 8, 16]


def test_ranges_of_what_nothing_cuts_cut_nothing():
    cuts = Cuts()
    whole, part = cuts.add(16), cuts.add(8)
    cuts.relate(Range(whole, part, 0, 0, 8))
    cuts.solve()
    assert cuts.blocks(whole) == (16,)


def test_views_take_heads_apart():
    cuts, flat = cut(32, 16)
    heads, width = cuts.add(8), cuts.add(4)
    cuts.relate(View((flat,), (heads, width)))
    cuts.solve()
    assert (cuts.blocks(heads), cuts.blocks(width)) == ((4, 4), (4,))
    assert row_major_points(cuts, (heads, width)) == {F(1, 2)}


def test_a_cut_inside_a_head_takes_all_heads_apart():
    cuts, width = cut(4, 2)
    flat, heads = cuts.add(12), cuts.add(3)
    cuts.relate(View((flat,), (heads, width)))
    cuts.solve()
    assert cuts.blocks(flat) == (2,) * 6
    assert cuts.blocks(heads) == (1, 1, 1)
    assert is_contiguous(cuts, (heads, width))


def test_blocks_inside_of_whole_dimensions_are_not_contiguous():
    cuts, inner = cut(4, 2)
    outer = cuts.add(3)
    cuts.solve()
    assert not is_contiguous(cuts, (outer, inner))
    assert is_contiguous(cuts, (inner, outer))


def test_symbolic_sizes_are_cut_where_they_can_be_divided():
    rows = sympy.Symbol("rows", integer=True, positive=True)
    cuts = Cuts()
    whole, part, other = cuts.add(4 * rows), cuts.add(rows), cuts.add(rows)
    cuts.relate(Range(whole, part, rows, 0, rows, cuts=True))
    cuts.relate(Range(other, cuts.add(rows / 2), 0, 0, rows / 2, cuts=True))
    cuts.solve()
    assert cuts.blocks(whole) == (rows, rows, 2 * rows)
    assert cuts.blocks(other) == (rows,), "rows may be odd"
    assert ratio(4 * rows, rows) == 4
    assert ratio(rows, 3) is None
