"""Compositions compute what the fused ops are defined to."""

from __future__ import annotations

import operator

import pytest
import torch

from compiler.check.simulate import draw_inputs, simulate
from compiler.ir.fused_ops import ALL_REDUCE_NORM, SHARED_NORM
from compiler.ir.mesh import Mesh
from compiler.ir.row_ops import own_share
from tests.support.graphs import Builder

RANKS, HIDDEN, EPS, OFFSET = 4, 16, 1e-5, 1.0


def defined(x: list[torch.Tensor], residual: torch.Tensor, weight: torch.Tensor) -> list:
    """The norm and the sum, all rows."""
    h = torch.stack(x).sum(0) + residual
    return [h / (h.square().mean(-1, keepdim=True) + EPS).sqrt() * (weight + OFFSET), h]


@pytest.mark.parametrize("rows", [8, 9, 3])
@pytest.mark.parametrize("op", [ALL_REDUCE_NORM, SHARED_NORM])
def test_compositions_compute_the_definition(op: object, rows: int) -> None:
    build = Builder(Mesh({"tp": RANKS}))
    shares = op is SHARED_NORM
    own = -(-rows // RANKS) if shares else rows
    x = build.input("x", rows, HIDDEN, varies=["tp"])
    residual = build.input("r", own, HIDDEN, varies=["tp"] if shares else [])
    weight = build.input("w", HIDDEN)
    ranks = [RANKS] if shares else []
    call = build.call(op, x, residual, weight, EPS, OFFSET, *ranks, "tp")
    graph = build.finish(*(build.call(operator.getitem, call, i) for i in (0, 1)))
    drawn = draw_inputs(graph, 0)
    y, h = simulate(graph, drawn, exact=True)
    whole = torch.cat(drawn["r"])[:rows] if shares else drawn["r"][0]
    want_y, want_h = defined(drawn["x"], whole, drawn["w"][0])
    for rank in range(RANKS):
        torch.testing.assert_close(y[rank], want_y)
        kept = own_share(want_h, 0, RANKS, rank) if shares else want_h
        filled = min(max(rows - rank * own, 0), own) if shares else rows
        torch.testing.assert_close(h[rank][:filled], kept[:filled])
