"""Shares of rows: every row is somebody's, and padding is zero."""

from __future__ import annotations

import pytest
import torch

from compiler.ir.row_ops import ALL_SLICE, PAD_ROWS, all_slice, own_share
from tests.support.graphs import function


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("rows", [0, 1, 3, 4, 5, 8])
def test_shares_are_the_padded_rows(rows: int, ranks: int) -> None:
    x = torch.randn(2, rows)
    padded = PAD_ROWS(x, 1, ranks)
    assert padded.shape[1] % ranks == 0
    assert padded.shape[1] - rows < ranks
    assert (padded[:, :rows] == x).all()
    assert not padded[:, rows:].any()
    shares = [own_share(x, 1, ranks, i) for i in range(ranks)]
    assert torch.equal(torch.cat(shares, 1), padded)


@pytest.mark.parametrize("rows", [0, 5, 8])
def test_shapes_without_data(rows: int) -> None:
    x = torch.empty(rows, 3, device="meta")
    assert ALL_SLICE(x, 0, 4, "tp").shape == own_share(torch.empty(rows, 3), 0, 4, 0).shape
    assert PAD_ROWS(x, 0, 4).shape == PAD_ROWS(torch.empty(rows, 3), 0, 4).shape


def test_reads_its_arguments() -> None:
    graph = function('%0 "x": f32[3, 8]', '%1: f32[3, 2] = commplan.all_slice(%0, -1, 4, "tp")',
                     "return %1")  # fmt: skip
    x, node, output = graph.graph.nodes
    found = all_slice(node)
    assert found is not None
    assert (found.operand, found.dim, found.group, found.group_size) == (x, 1, "tp", 4)
    assert all_slice(x) is None
    assert all_slice(output) is None
