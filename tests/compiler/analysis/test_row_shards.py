"""Which operands the rows of a result are made of."""

from __future__ import annotations

from itertools import repeat

import pytest

from compiler.analysis.row_shards import row_operands
from tests.support.graphs import function

INPUTS = '%0 "x": f32[4, 8] {tp: R}, %1 "w": f32[8, 8] {tp: R}, %2 "s": f32[4, 4] {tp: R}'


@pytest.mark.parametrize(
    ("line", "dim", "rows"),
    [
        ("%3: f32[4, 8] = aten.mm(%0, %1)", 0, {"x": 0}),
        ("%3: f32[4, 8] = aten.mm(%0, %1)", 1, {"w": 1}),
        ("%3: f32[8, 4] = aten.t(%0)", 1, {"x": 0}),
        ("%3: f32[4, 8] = aten.mul.Tensor(%0, %0)", 0, {"x": 0}),
        ("%3: f32[4, 8] = aten.softmax.int(%0, -1)", 0, {"x": 0}),
        ("%3: f32[4, 8] = aten.softmax.int(%0, -1)", 1, None),  # mixes columns
        ("%3: f32[4, 8] = aten.cumsum(%0, 0)", 0, None),
        ("%3: f32[4, 4] = aten.mm(%2, %2)", 0, None),  # reads one operand in two ways
        ("%3: f32[4, 8] = aten.full([4, 8], 1.0)", 0, None),  # makes rows
    ],
)
def test_rows_of_operands(line: str, dim: int, rows: dict[str, int] | None) -> None:
    graph = function(INPUTS, line, "return %3")
    (node,) = graph.meanings
    rule = graph.meanings[node]
    assert rule is not None
    carrying = row_operands(node, rule, repeat(dim))
    assert (carrying and {x.name: d for x, d in carrying.items()}) == rows
