"""Parts of tensors: ranges, results of several tensors, and picking one."""

from __future__ import annotations

import operator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

from compiler.ir import access
from compiler.ir.rules import Call, meaning
from tests.compiler.ir.rules import laws
from tests.compiler.ir.rules.laws import reals, sample
from tests.support.seeds import share

aten = torch.ops.aten


def picked(split: laws.Sample, which: int) -> fx.Node:
    """The ``getitem`` of one result of a call."""
    several = laws.node(split)
    found = several.graph.call_function(operator.getitem, (several, which))
    found.meta["val"] = several.meta["val"][which]
    return found


@pytest.mark.parametrize("which", [0, 1])
def test_getitem_keeps_dimensions_and_partial_sums(which: int) -> None:
    split = sample(aten.split.Tensor, reals(6, 4), 2, 1)
    found, before = meaning(picked(split, which)), laws.meaning_of(split)
    assert found is not None
    assert found.dims is not None
    assert before.dims is not None
    assert laws.keeps_partial(found, [True])
    assert found.dims.operands[0] == found.dims.results[0] == (0, 1)
    assert before.dims.results[which] == (0, None)


def test_getitem_of_different_results_are_different_maps() -> None:
    split = sample(aten.split.Tensor, reals(6, 4), 2, 1)
    maps = [meaning(picked(split, n)).terms[0].map
            for n in (0, 1, access.RankInt(1, (0, 1)))]  # fmt: skip
    assert len(set(maps)) == 3


def test_getitem_by_rank_keeps_no_partial_sum() -> None:
    split = sample(aten.split.Tensor, reals(6, 4), 2, 1)
    found = meaning(picked(split, access.RankInt(1, (0, 1))))
    assert found is not None
    assert not laws.keeps_partial(found, [True])


@settings(max_examples=share(300), deadline=None, derandomize=True)
@given(data=st.data())
def test_ranges_of_the_same_elements_are_the_same_map(data: st.DataObject) -> None:
    """And of others are not: what a range is called says what it takes."""
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    x = torch.arange(1, 1 + torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)
    places = st.integers(-5, 5)

    def drawn() -> laws.Sample:
        dim = data.draw(st.integers(-len(shape), len(shape) - 1))
        if data.draw(st.booleans()):
            size = shape[dim]
            return sample(aten.select.int, x, dim, data.draw(st.integers(-size, size - 1)))
        return sample(aten.slice.Tensor, x, dim, *(data.draw(places) for _ in range(2)),
                      data.draw(st.integers(1, 3)))  # fmt: skip

    one, other = drawn(), drawn()
    taken = [laws.run(call, [x])[0].flatten().tolist() for call in (one, other)]
    maps = [laws.meaning_of(call).terms[0].map for call in (one, other)]  # type: ignore[index]
    if all(taken):
        assert (taken[0] == taken[1]) == (maps[0] == maps[1])


def test_ranges_that_differ_between_ranks_are_known_by_their_call() -> None:
    """A number of the rank's own is zero on some rank, and still no zero."""
    maps = []
    for own in (access.RankInt(0, (0, 1)), access.RankInt(0, (0, 2)), 0):
        for op, *more in ((aten.narrow.default, 1, own, 3), (aten.select.int, 1, own),
                           (aten.slice.Tensor, 1, own, 2)):  # fmt: skip
            (term,) = laws.meaning_of(sample(op, reals(6, 4), *more)).terms or ()
            maps.append(term.map)
    assert len(set(maps)) == 9


def test_parts_are_the_ranges_that_they_are() -> None:
    x = reals(6, 4)
    for several in (sample(aten.split.Tensor, x, 3, 0), sample(aten.chunk.default, x, 2)):
        second = laws.meaning_of(sample(aten.slice.Tensor, x, 0, 3, 6))
        assert laws.meaning_of(several).parts[1] == second.terms[0].map  # type: ignore[index]
    assert laws.meaning_of(sample(aten.unbind.int, x, 1)).parts[2] == (
        laws.meaning_of(sample(aten.select.int, x, 1, -2)).terms[0].map  # type: ignore[index]
    )


def test_dimensions_are_counted_from_the_first() -> None:
    """In what calls are compared by: of the result where the op makes a dimension."""
    x = reals(6, 4)
    for op, *pair in (
        (aten._softmax.default, (x, -1, False), (x, 1, False)),
        (aten.amax.default, (x, [-1, -2]), (x, [1, 0])),
        (aten.cat.default, ([x, x], -2), ([x, x], 0)),
        (aten.stack.default, ([x, x], -1), ([x, x], 2)),
        (aten.unsqueeze.default, (x, -2), (x, 1)),
        (aten.cumsum.default, (reals(), -1), (reals(), 0)),
    ):
        first, second = (Call.of(laws.node(sample(op, *given))).key for given in pair)
        assert first == second, op
    stacked = [Call.of(laws.node(sample(aten.stack.default, [x, x], dim))).key for dim in (1, -1)]
    assert stacked[0] != stacked[1]
