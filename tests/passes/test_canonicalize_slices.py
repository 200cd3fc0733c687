"""Own slices named, and what is no own slice."""

from __future__ import annotations

import pytest

from compiler.check import Verdict, check
from compiler.ir.row_ops import ALL_SLICE
from passes import CanonicalizeSlices
from tests.support.graphs import agree, function

FOUR = "mesh <tp = 4>"
X = '%0 "x": f64[8, 6] {tp: V}'


@pytest.mark.parametrize(
    ("shape", "call"),
    [
        ("[2, 6]", "aten.slice.Tensor(%0, 0, rank(0, 2, 4, 6), rank(2, 4, 6, 8))"),
        ("[2, 6]", "aten.narrow(%0, 0, rank(0, 2, 4, 6), 2)"),
        ("[2, 6]", "aten.narrow(%0, -2, rank(0, 2, 4, 6), 2)"),
    ],
)
def test_canonicalize_slices_are_named(shape: str, call: str) -> None:
    graph = function(X, f"%1: f64{shape} = {call}", "return %1", mesh=FOUR)
    result = CanonicalizeSlices().apply(graph)
    assert result.changed
    assert [n.target for n in result.graph.graph.nodes][1] is ALL_SLICE
    assert check(graph, result.graph).verdict is Verdict.EQUIVALENT
    assert agree(graph, result.graph)
    assert not CanonicalizeSlices().apply(result.graph).changed


@pytest.mark.parametrize(
    ("shape", "call"),
    [
        ("[2, 6]", "aten.narrow(%0, 0, rank(2, 0, 4, 6), 2)"),
        ("[2, 6]", "aten.narrow(%0, 0, 2, 2)"),
        ("[3, 6]", "aten.narrow(%0, 0, rank(0, 1, 2, 3), 3)"),
        ("[1, 6]", "aten.slice.Tensor(%0, 0, rank(0, 2, 4, 6), rank(2, 4, 6, 8), 2)"),
        ("[4, 6]", "aten.narrow(%0, 0, rank(0, 4, 0, 4), 4)"),
    ],
)
def test_other_slices_stay(shape: str, call: str) -> None:
    graph = function(X, f"%1: f64{shape} = {call}", "return %1", mesh=FOUR)
    assert not CanonicalizeSlices().apply(graph).changed
