"""Shares that cost nothing: reduce_scatters, and one gather for two, whatever the machine."""

from __future__ import annotations

from typing import Any

import pytest

from compiler import Mesh, Partial, Varying, optimize_graph
from compiler.check import Verdict
from tests.support.graphs import agree, function

FOUR = "mesh <tp = 4>"
ARGS = '%0 "x": f64[8, 6] {tp: V}, %1 "y": f64[8, 6] {tp: V}, %2 "s": f64[2, 6] {tp: V}'
INPUTS: dict[str, Any] = {"x": Varying(), "y": Partial(), "s": Varying()}
SUM, GATHER = "comm.all_reduce({}) {{axis = tp, op = sum}}", "comm.all_gather({}) {{axis = tp}}"
OWN = "aten.slice.Tensor({}, 0, rank(0, 2, 4, 6), rank(2, 4, 6, 8))"

CASES: dict[str, tuple[list[str], dict[str, int]]] = {
    "an all_reduce of which each rank reads its rows": (
        ["%3: f64[8, 6] = " + SUM.format("%0"), "%4: f64[2, 6] = " + OWN.format("%3"),
         "return %4"],
        {"reduce_scatter": 1},
    ),
    "ops in between that treat rows alike": (
        ["%3: f64[8, 6] = " + SUM.format("%0"), "%4: f64[8, 6] = aten.silu(%3)",
         "%5: f64[2, 6] = " + OWN.format("%4"), "return %5"],
        {"reduce_scatter": 1},
    ),
    "two sums that meet before the cut": (
        ["%3: f64[8, 6] = " + SUM.format("%0"), "%4: f64[8, 6] = " + SUM.format("%1"),
         "%5: f64[8, 6] = aten.add.Tensor(%3, %4)", "%6: f64[2, 6] = " + OWN.format("%5"),
         "return %6"],
        {"reduce_scatter": 1},
    ),
    "somebody reads all rows": (
        ["%3: f64[8, 6] = " + SUM.format("%0"), "%4: f64[2, 6] = " + OWN.format("%3"),
         "return %3, %4"],
        {"all_reduce": 1},
    ),
    "an op in between mixes rows": (
        ["%3: f64[8, 6] = " + SUM.format("%0"), "%4: f64[8, 6] = aten.cumsum(%3, 0)",
         "%5: f64[2, 6] = " + OWN.format("%4"), "return %5"],
        {"all_reduce": 1},
    ),
    "elementwise ops of two gathers": (
        ["%3: f64[2, 6] = aten.silu(%2)", "%4: f64[8, 6] = " + GATHER.format("%2"),
         "%5: f64[8, 6] = " + GATHER.format("%3"), "%6: f64[8, 6] = aten.mul.Tensor(%4, %5)",
         "return %6"],
        {"all_gather": 1},
    ),
    "two gathers that are read apart": (
        ["%3: f64[2, 6] = aten.silu(%2)", "%4: f64[8, 6] = " + GATHER.format("%2"),
         "%5: f64[8, 6] = " + GATHER.format("%3"), "return %4, %5"],
        {"all_gather": 2},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("policy", ["cost", "merge", "boundary"])
def test_shares_at_hand(name: str, policy: str) -> None:
    lines, after = CASES[name]
    graph = function(ARGS, *lines, mesh=FOUR)
    result = optimize_graph(graph.module, mesh=Mesh({"tp": 4}), inputs=INPUTS, policy=policy)
    assert dict(result.after.counts) == after
    assert result.verdict in (Verdict.EQUIVALENT, Verdict.IDENTICAL)
    assert agree(graph, result.spmd)
