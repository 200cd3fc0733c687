"""Rows to the ranks that own their ids and back, against gathering everything; gloo ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from compiler.ir.dispatch import added, needed
from compiler.runtime.kernels import dispatch_rows
from tests.support.one_gpu import on_one_gpu

RANKS, IDS, WIDTH = 4, 12, 5

ROUTING = {
    "any": lambda rows, own: torch.randint(0, IDS, (rows, 3)),
    "all to one rank": lambda rows, own: torch.full((rows, 3), 4),
    "to itself": lambda rows, own: torch.full((rows, 3), own),
    "an empty rank": lambda rows, own: torch.randint(0, IDS // 2, (rows, 3)),
}


def owned(ranks: int) -> tuple[list[int], list[int]]:
    """First and last-but-one id of each rank."""
    return [i * IDS // ranks for i in range(ranks)], [i * IDS // ranks for i in range(1, ranks + 1)]


def computed(x: Tensor, ids: Tensor, weight: Tensor, first: int, end: int) -> Tensor:
    """Sum of what a rank's experts give; expert e multiplies by e + 1."""
    here = (ids >= first) & (ids < end)
    return x * ((ids + 1) * here * weight).sum(1, keepdim=True)


def on_ranks(
    group: dist.ProcessGroup, routing: str, rows: int, equal: bool, device: str = "cpu"
) -> dict[str, Any]:
    rank, name, first, end = group.rank(), str(group.group_name), *owned(group.size())
    torch.manual_seed(rank)
    x, weight = torch.randn(rows, WIDTH, dtype=torch.float64), torch.rand(rows, 3)
    ids = ROUTING[routing](rows, first[rank])
    x, weight, ids = (t.to(device) for t in (x, weight, ids))
    with pytest.MonkeyPatch.context() as patch:
        if equal:
            patch.setattr(dispatch_rows, "capturing", lambda _: True)
        *received, places, counts = torch.ops.commplan.dispatch_rows(
            [x, ids, weight], ids, first, end, rows * group.size(), name
        )
        partial = computed(*received, first[rank], end[rank])
        got = torch.ops.commplan.combine_rows(partial, places, counts, rows, name)
    want = x * ((ids + 1) * weight).sum(1, keepdim=True)
    return {
        "error": float((got - want).abs().max()) if rows else 0.0,
        "dtypes": [r.dtype for r in received],
        "sent": len(places),
        "least": int(needed(ids, first, end).sum()),
        "received": len(received[0]),
    }


ROUTINGS = pytest.mark.parametrize("routing", list(ROUTING))
SPLITS = pytest.mark.parametrize("equal", [False, True], ids=["exact", "equal splits"])


def assert_returned(everyone: list[dict[str, Any]], rows: int, equal: bool) -> None:
    for found in everyone:
        assert found["error"] < 1e-5
        assert found["dtypes"] == [torch.float64, torch.int64, torch.float32]
        assert found["sent"] == (len(everyone) * rows if equal else found["least"])
    assert sum(f["sent"] for f in everyone) == sum(f["received"] for f in everyone)


@SPLITS
@pytest.mark.parametrize("rows", [0, 1, 7])
@ROUTINGS
def test_rows_there_and_back(gloo_pool: Any, routing: str, rows: int, equal: bool) -> None:
    assert_returned(gloo_pool(RANKS).run(on_ranks, routing, rows, equal), rows, equal)


def all_on_cuda(group: dist.ProcessGroup) -> dict[bool, list[dict[str, Any]]]:
    return {
        equal: [on_ranks(group, routing, 7, equal, "cuda") for routing in ROUTING]
        for equal in (False, True)
    }


@pytest.mark.gpu
def test_rows_there_and_back_on_cuda() -> None:
    everyone = on_one_gpu(all_on_cuda)
    for equal in (False, True):
        for found in zip(*(one[equal] for one in everyone), strict=True):
            assert_returned(list(found), 7, equal)


@pytest.mark.gpu
def test_in_a_cuda_graph_every_rank_is_sent_every_row(tmp_path: Path) -> None:
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert_replays(str(dist.group.WORLD.group_name))
    finally:
        dist.destroy_process_group()


def assert_replays(group: str) -> None:
    """Replays of one graph, on other rows and ids than those it was captured with."""
    rows, first, end = 7, [2], [IDS - 1]
    x = torch.randn(rows, WIDTH, device="cuda", dtype=torch.float64)
    ids, weight = (torch.zeros(rows, 3, device="cuda", dtype=d) for d in (torch.int64, x.dtype))

    def there_and_back() -> Tensor:
        *received, places, counts = torch.ops.commplan.dispatch_rows(
            [x, ids, weight], ids, first, end, rows, group
        )
        partial = computed(*received, first[0], end[0])
        back: Tensor = torch.ops.commplan.combine_rows(partial, places, counts, rows, group)
        return back

    there_and_back()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = there_and_back()
    for _ in range(3):
        x.normal_(), ids.random_(0, IDS), weight.uniform_()
        graph.replay()
        assert (y - computed(x, ids, weight, first[0], end[0])).abs().max() < 1e-12


def sliced(group: dist.ProcessGroup) -> float:
    """Experts dealt out over two pairs of ranks, each rank of a pair with half of each."""
    first, end = [0, 0, 6, 6], [6, 6, 12, 12]
    torch.manual_seed(group.rank())
    x, ids = torch.randn(5, WIDTH), torch.randint(0, IDS, (5, 3))
    name = str(group.group_name)
    received, numbers, places, counts = torch.ops.commplan.dispatch_rows(
        [x, ids], ids, first, end, 5 * group.size(), name
    )
    here = (numbers >= first[group.rank()]) & (numbers < end[group.rank()])
    partial = received * ((numbers + 1) * here).sum(1, keepdim=True) / 2
    got = torch.ops.commplan.combine_rows(partial, places, counts, 5, name)
    return float((got - x * (ids + 1).sum(1, keepdim=True)).abs().max())


def test_all_ranks_that_own_an_id_are_added(gloo_pool: Any) -> None:
    assert max(gloo_pool(RANKS).run(sliced)) < 1e-5


def test_a_row_goes_once_to_each_rank_that_owns_one_of_its_ids() -> None:
    ids = torch.tensor([[0, 1, 2], [0, 3, 11], [5, 5, 5]])
    first, end = owned(RANKS)
    assert needed(ids, first, end).tolist() == [
        [True, True, False], [False, True, True], [False] * 3, [False, True, False],
    ]  # fmt: skip
    assert needed(ids[:, 1], first, end)[0].tolist() == [True, False, False]


def test_results_are_added_in_float32() -> None:
    back = torch.tensor([[1.0], [1 / 256], [1 / 256]], dtype=torch.bfloat16)
    total = added(back, torch.tensor([0, 1, 2]), 3, 1)
    assert total.tolist() == [[1 + 1 / 128]], "1 + 1/256 is 1 in bfloat16"
    counts = torch.ones(2, 1, dtype=torch.int64)
    assert added(counts, torch.tensor([0, 3]), 2, 2).dtype is torch.int64
