"""Products and sums of drawn shapes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import BroadcastableShapes, mutually_broadcastable_shapes

from tests.compiler.ir.rules import laws
from tests.compiler.ir.rules.laws import reals, sample

aten = torch.ops.aten
SHAPES = mutually_broadcastable_shapes(num_shapes=2, min_side=1, max_side=6, max_dims=4)
PRODUCTS = mutually_broadcastable_shapes(signature="(m?,k),(k,n?)->(m?,n?)", max_side=4, max_dims=2)


def obeys(call: laws.Sample) -> None:
    """All claims of a meaning at once."""
    found = laws.meaning_of(call)
    assert found.terms is not None
    assert found.dims is not None
    assert laws.follows_terms(call, found)
    for partial in laws.placements(len(laws.operands(call))):
        if laws.keeps_partial(found, partial):
            assert laws.adds_up(call, partial)
    for label in laws.labels(found):
        for count in laws.counts_of(call, found, label):
            assert laws.factors(call, found, label, count)


@settings(max_examples=40, deadline=None)
@given(
    SHAPES, st.sampled_from((aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor))
)
def test_broadcasting(shapes: BroadcastableShapes, op: object) -> None:
    obeys(sample(op, *(reals(*s) for s in shapes.input_shapes)))


@settings(max_examples=60, deadline=None)
@given(PRODUCTS)
def test_products(shapes: BroadcastableShapes) -> None:
    obeys(sample(aten.matmul.default, *(reals(*s) for s in shapes.input_shapes)))


@pytest.mark.parametrize("op", [aten.linear.default, aten.addmm.default])
def test_a_bias_is_not_added_per_block(op: object) -> None:
    """With an addend, a contracted dimension is no factor: the addend would count once a block."""
    x, w, b = reals(6, 4), reals(2, 4), reals(2)
    call = sample(op, x, w, b) if op is aten.linear.default else sample(op, b, x, w.mT)
    product = sample(aten.mm.default, x, w.mT)
    assert "k" in laws.labels(laws.meaning_of(product))
    assert "k" not in laws.labels(laws.meaning_of(call))


ALIGNED = st.sampled_from((8, 16, 24))
"""Sizes whose halves and thirds are rows of whole 16 bytes in single precision, where they are."""


@pytest.mark.skipif(not hasattr(aten, "_grouped_mm"), reason="this torch has no grouped products")
@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=4), ALIGNED, ALIGNED)
def test_grouped_products(rows: list[int], inner: int, columns: int) -> None:
    """Experts of drawn numbers of rows, also none."""
    offsets = torch.tensor(rows, dtype=torch.int32).cumsum(0, dtype=torch.int32)
    x, w = reals(sum(rows), inner).float(), reals(len(rows), inner, columns).float()
    obeys(sample(aten._grouped_mm.default, x, w, offsets))
