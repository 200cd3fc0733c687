"""Results of several tensors, and picking one."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import fx

from compiler.ir import access
from compiler.ir.rules import meaning
from tests.compiler.ir.rules import laws
from tests.compiler.ir.rules.laws import reals, sample

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
    assert found.keeps_partial([True], [False])
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
    assert not found.keeps_partial([True], [False])
