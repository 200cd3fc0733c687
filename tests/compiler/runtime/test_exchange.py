"""Ranks asked for objects, and inputs compared."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from compiler.errors import CommPlanError, MeshError, PlanError
from compiler.runtime.exchange import compare_inputs, compare_plans, exchange_over, ranks_of


def asked(group: dist.ProcessGroup) -> Any:
    exchange = exchange_over(group)
    if exchange is None:
        return None
    compare_inputs(exchange, {"same": torch.arange(3.0)})
    own = torch.full((3,), float(exchange.rank == 1))
    try:
        compare_inputs(exchange, {"same": torch.arange(3.0), "own": own})
    except CommPlanError as error:
        return exchange.gather(exchange.rank), exchange.size, str(error)
    return "not refused"


def test_exchange(gloo_pool: Any) -> None:
    for ranks, size, message in gloo_pool(4).run(asked):
        assert (ranks, size) == ([0, 1, 2, 3], 4)
        assert message.startswith("input 'own' must be the same on all ranks, and is not")
        assert "found: rank 1 differs from the others" in message


def halves(group: dist.ProcessGroup) -> str:
    exchange = exchange_over(group)
    assert exchange is not None
    with pytest.raises(CommPlanError) as caught:
        compare_inputs(exchange, {"x": torch.tensor([exchange.rank % 2])})
    return caught.value.found


def test_where_no_more_ranks_hold_one_input_than_another_the_first_is_right(gloo_pool: Any) -> None:
    assert gloo_pool(4).run(halves) == ["ranks 1, 3 differ from the others"] * 4


def planned(group: dist.ProcessGroup, digests: list[str], machines: list[str | None]) -> str:
    exchange = exchange_over(group)
    assert exchange is not None
    try:
        compare_plans(exchange, digests[exchange.rank], machines[exchange.rank])
    except PlanError as error:
        return str(error)
    return "agreed"


@pytest.mark.parametrize(
    ("digests", "machines", "message"),
    [
        ("aaaa", ["h100x8"] * 4, "agreed"),
        ("aaaa", ["h100x8", None, "h200x8", None], "agreed"),
        (
            "aaba",
            ["h100x8", "h100x8", "h200x8", "h100x8"],
            "ranks plan for different machines\n"
            "  found: rank 0 plans for h100x8, rank 2 for h200x8\n"
            "  remedy: pass machine= by name, the same on every rank: by default each rank takes "
            "the machine that has its own GPU",
        ),
        (
            "abab",
            ["h100x8", "h100x8", "h100x8", None],
            "ranks plan for different machines\n"
            "  found: rank 0 plans for h100x8, rank 3 for no machine\n"
            "  remedy: pass machine= by name, the same on every rank: by default each rank takes "
            "the machine that has its own GPU",
        ),
        (
            "abab",
            [None] * 4,
            "ranks hold different plans\n"
            "  found: ranks 1, 3 differ from rank 0\n"
            "  remedy: run the same version of commplan and torch, with the same options, on every "
            "rank",
        ),
    ],
)
def test_plans_are_compared(
    gloo_pool: Any, digests: str, machines: list[str | None], message: str
) -> None:
    assert gloo_pool(4).run(planned, list(digests), machines) == [message] * 4


def test_one_rank_has_nobody_to_ask(gloo_pool: Any) -> None:
    assert gloo_pool(1).run(asked) == [None]


def test_no_process_group() -> None:
    with pytest.raises(MeshError, match="no process group is initialized"):
        ranks_of(None)
