"""Row-major reshapes: labels from sizes alone."""

from __future__ import annotations

import itertools
import math

import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.ir.rules import RULES
from compiler.ir.rules.builders import overloads, reshaped

FACTORS = st.lists(st.sampled_from((1, 2, 2, 3, 4, 6)), min_size=1, max_size=5)


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two shapes of as many elements: factors in two orders, grouped at random."""
    factors = draw(FACTORS)

    def shape(order: list[int]) -> tuple[int, ...]:
        cuts = sorted(draw(st.sets(st.integers(1, len(order)), max_size=len(order))))
        edges = [0, *[c for c in cuts if c < len(order)], len(order)]
        return tuple(math.prod(order[a:b]) for a, b in itertools.pairwise(edges))

    reordered = draw(st.booleans())
    return shape(factors), shape(draw(st.permutations(factors)) if reordered else factors)


@settings(deadline=None)
@given(reshapes(), st.sampled_from((2, 3)))
def test_blocks_correspond(shapes: tuple[tuple[int, ...], tuple[int, ...]], count: int) -> None:
    before, after = shapes
    left, right = reshaped(before, after)
    assert [x for x in left if x is not None] == [x for x in right if x is not None]
    x = torch.arange(math.prod(before)).view(before)
    for label in (x for x in left if x is not None):
        i, j = left.index(label), right.index(label)
        if before[i] % count or after[j] % count:
            continue
        sizes = [n // count if d == j else n for d, n in enumerate(after)]
        blocks = [b.reshape(sizes) for b in x.chunk(count, i)]
        assert torch.equal(torch.cat(blocks, j), x.reshape(after))


@settings(deadline=None)
@given(reshapes())
def test_symbols_do_as_numbers(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    """A symbolic row count in front keeps its label, whatever is reshaped behind it."""
    rows = sympy.Symbol("s0", integer=True, positive=True)
    left, right = reshaped((rows, *shapes[0]), (rows, *shapes[1]))
    assert (left[0], right[0]) == (0, 0)
    shifted = tuple(None if x is None else x + 1 for x in reshaped(*shapes)[0])
    assert left[1:] == shifted


def test_symbols() -> None:
    rows = sympy.Symbol("s0", integer=True, positive=True)
    assert reshaped((1, rows, 8), (rows, 8)) == ((None, 1, 2), (1, 2))
    assert reshaped((4 * rows, 8), (rows, 4, 8)) == ((0, 1), (0, None, 1))
    assert reshaped((rows, 4, 8), (rows, 32)) == ((0, 1, None), (0, 1))
    assert reshaped((rows, 6), (2 * rows, 3)) == ((0, None), (0, None))


def test_overloads_are_functions_of_tensors() -> None:
    aten = torch.ops.aten
    assert overloads("max.other") == [aten.max.other]
    assert aten.add.Tensor in overloads("add")
    assert aten.add.int not in overloads("add"), "TorchScript's arithmetic"
    assert aten.add.out not in overloads("add")
    assert overloads("_assert_tensor_metadata", "sym_size", "no_such_op") == []


def test_ops_without_a_rule() -> None:
    """What computes no tensor, reads strides, or reads bits is not in the table."""
    aten = torch.ops.aten
    for op in (aten.sym_size.int, aten._assert_tensor_metadata.default, aten._assert_scalar.default,
               aten._assert_async.msg, aten.as_strided.default, aten._reshape_alias.default,
               aten.view_copy.dtype, aten.add_.Tensor, aten.where.default,
               aten.scatter.reduce):  # fmt: skip
        assert op not in RULES
