"""Rows to the ranks that own their ids and back, against gathering everything; gloo ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from compiler.ir.dispatch import added, needed
from compiler.runtime import dispatch

RANKS, IDS, WIDTH = 4, 12, 5
FIRST, END = [0, 3, 6, 9], [3, 6, 9, 12]

ROUTING = {
    "any": lambda rows, rank: torch.randint(0, IDS, (rows, 3)),
    "all to one rank": lambda rows, rank: torch.full((rows, 3), 4),
    "to itself": lambda rows, rank: torch.full((rows, 3), FIRST[rank]),
    "an empty rank": lambda rows, rank: torch.randint(0, 9, (rows, 3)),
}


def computed(x: Tensor, ids: Tensor, weight: Tensor, rank: int) -> Tensor:
    """Sum of what this rank's experts give; expert e multiplies by e + 1."""
    here = (ids >= FIRST[rank]) & (ids < END[rank])
    return x * ((ids + 1) * here * weight).sum(1, keepdim=True)


def on_ranks(group: dist.ProcessGroup, routing: str, rows: int, equal: bool) -> dict[str, Any]:
    rank, name = group.rank(), str(group.group_name)
    torch.manual_seed(rank)
    x, weight = torch.randn(rows, WIDTH, dtype=torch.float64), torch.rand(rows, 3)
    ids = ROUTING[routing](rows, rank)
    with pytest.MonkeyPatch.context() as patch:
        if equal:
            patch.setattr(dispatch, "capturing", lambda _: True)
        *received, places, counts = torch.ops.commplan.dispatch_rows(
            [x, ids, weight], ids, FIRST, END, name
        )
        partial = computed(*received, rank)
        got = torch.ops.commplan.combine_rows(partial, places, counts, rows, name)
    want = x * ((ids + 1) * weight).sum(1, keepdim=True)
    return {
        "error": float((got - want).abs().max()) if rows else 0.0,
        "dtypes": [r.dtype for r in received],
        "sent": len(places),
        "least": int(needed(ids, FIRST, END).sum()),
        "received": len(received[0]),
    }


@pytest.mark.parametrize("equal", [False, True], ids=["exact", "equal splits"])
@pytest.mark.parametrize("rows", [0, 1, 7])
@pytest.mark.parametrize("routing", list(ROUTING))
def test_rows_there_and_back(gloo_pool: Any, routing: str, rows: int, equal: bool) -> None:
    everyone = gloo_pool(RANKS).run(on_ranks, routing, rows, equal)
    for found in everyone:
        assert found["error"] < 1e-5
        assert found["dtypes"] == [torch.float64, torch.int64, torch.float32]
        assert found["sent"] == (RANKS * rows if equal else found["least"])
    assert sum(f["sent"] for f in everyone) == sum(f["received"] for f in everyone)


def sliced(group: dist.ProcessGroup) -> float:
    """Experts dealt out over two pairs of ranks, each rank of a pair with half of each."""
    first, end = [0, 0, 6, 6], [6, 6, 12, 12]
    torch.manual_seed(group.rank())
    x, ids = torch.randn(5, WIDTH), torch.randint(0, IDS, (5, 3))
    name = str(group.group_name)
    received, numbers, places, counts = torch.ops.commplan.dispatch_rows(
        [x, ids], ids, first, end, name
    )
    here = (numbers >= first[group.rank()]) & (numbers < end[group.rank()])
    partial = received * ((numbers + 1) * here).sum(1, keepdim=True) / 2
    got = torch.ops.commplan.combine_rows(partial, places, counts, 5, name)
    return float((got - x * (ids + 1).sum(1, keepdim=True)).abs().max())


def test_all_ranks_that_own_an_id_are_added(gloo_pool: Any) -> None:
    assert max(gloo_pool(RANKS).run(sliced)) < 1e-5


def test_a_row_goes_once_to_each_rank_that_owns_one_of_its_ids() -> None:
    ids = torch.tensor([[0, 1, 2], [0, 3, 11], [5, 5, 5]])
    assert needed(ids, FIRST, END).tolist() == [
        [True, True, False], [False, True, True], [False] * 3, [False, True, False],
    ]  # fmt: skip
    assert needed(ids[:, 1], FIRST, END)[0].tolist() == [True, False, False]


def test_results_are_added_in_float32() -> None:
    back = torch.tensor([[1.0], [1 / 256], [1 / 256]], dtype=torch.bfloat16)
    total = added(back, torch.tensor([0, 1, 2]), 3, 1)
    assert total.tolist() == [[1 + 1 / 128]], "1 + 1/256 is 1 in bfloat16"
    counts = torch.ones(2, 1, dtype=torch.int64)
    assert added(counts, torch.tensor([0, 3]), 2, 2).dtype is torch.int64
