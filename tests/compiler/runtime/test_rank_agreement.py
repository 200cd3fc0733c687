"""Ranks asked for objects, and inputs compared."""

import re
import time
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist

from compiler import optimize_allreduce
from compiler.errors import CommPlanError, ExchangeError, MeshError, PlanError
from compiler.ir.mesh import Mesh
from compiler.runtime.group_exchange import exchange_over, ranks_of, ranks_of_groups
from compiler.runtime.rank_agreement import compare_inputs, compare_plans
from tests.compiler.optimize.models import HIDDEN, Stack


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


def replicas(group: dist.ProcessGroup) -> str:
    exchange, mesh = exchange_over(group), Mesh({"dp": 2, "tp": 2})
    assert exchange is not None
    with pytest.raises(CommPlanError) as caught:
        compare_inputs(
            exchange, {"x": torch.tensor([exchange.rank // 2])}, mesh, {"x": ["dp", "tp"]}
        )
    return caught.value.remedy


def test_the_remedy_names_the_axis_along_which_inputs_differ(gloo_pool: Any) -> None:
    for remedy in gloo_pool(4).run(replicas):
        assert remedy.endswith("inputs={'x': {'dp': Varying()}}")


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


def late(group: dist.ProcessGroup) -> str:
    exchange = exchange_over(group, timedelta(seconds=0.5))
    assert exchange is not None
    exchange.during("describing").gather(exchange.rank)
    exchange = exchange.during("planning")
    if exchange.rank == 2:
        time.sleep(2.0)  # the others give up
    with pytest.raises(ExchangeError) as caught:
        exchange.gather(exchange.rank)
    assert caught.value.alone
    return str(caught.value)


def test_ranks_that_do_not_arrive_are_named(gloo_pool: Any) -> None:
    *punctual, overdue = gloo_pool(4).run(late)[:3]
    for text in punctual:
        what, where, found, remedy = text.splitlines()
        assert what == "rank 2 did not arrive within 0.5 s"
        assert where.startswith("  where: meeting ")
        assert where.endswith(", planning")
        called = r"(before its first|after) call.*"  # the pool's ranks may have served other tests
        assert re.match(rf"  found: rank 2: {called}; last seen at meeting ", found)
        assert found.endswith(", describing")
        assert remedy.startswith("  remedy: every rank must compile the same graphs")
    assert "found: ranks 0, 1, 3: rank 2 did not arrive within 0.5 s" in overdue


def failing(group: dist.ProcessGroup) -> Any:
    exchange = exchange_over(group, timedelta(seconds=60))
    assert exchange is not None
    exchange = exchange.during("planning")
    answer = partial(exchange.fail, f"too hot on {exchange.rank}")
    with pytest.raises(ExchangeError) as caught:
        answer() if exchange.rank % 2 else exchange.gather(exchange.rank)
    return str(caught.value), caught.value.reasons, caught.value.alone, exchange.gather("next")


def test_a_failure_of_some_ranks_is_that_of_all(gloo_pool: Any) -> None:
    expected = (
        "ranks 1, 3 failed\n"
        "  where: planning\n"
        "  found: rank 1: too hot on 1; rank 3: too hot on 3\n"
        "  remedy: see what these ranks report",
        {1: "too hot on 1", 3: "too hot on 3"},
        False,
        ["next"] * 4,
    )
    assert gloo_pool(4).run(failing) == [expected] * 4


def elsewhere(group: dist.ProcessGroup) -> str:
    exchange = exchange_over(group)
    assert exchange is not None
    with pytest.raises(ExchangeError) as caught:
        exchange.during("first" if exchange.rank else "second").gather(0)
    assert caught.value.alone
    return str(caught.value)


def test_ranks_at_different_stages(gloo_pool: Any) -> None:
    text = (
        "the ranks compile different graphs\n"
        "  found: ranks 1, 2, 3: first; rank 0: second\n"
        "  remedy: every rank must compile the same graphs in the same order: call the model with "
        "arguments of the same kinds and sizes on every rank"
    )
    assert gloo_pool(4).run(elsewhere) == [text] * 4


def connected(group: dist.ProcessGroup) -> Any:
    pairs, fours = [[0, 1], [2, 3], [4, 5], [6, 7]], [[0, 1, 2, 3], [4, 5, 6, 7]]
    strided = [[0, 2], [1, 3], [4, 6], [5, 7]]
    names = []
    for ranks in (pairs, fours, strided):
        groups = [dist.new_group(members) for members in ranks]
        names += [g.group_name for g, m in zip(groups, ranks, strict=True) if group.rank() in m]
    pair, four, other = names
    asked = ([pair], [pair, four, other], [pair, other], [])
    exchange = exchange_over(group)
    assert exchange is not None
    return [ranks_of_groups(each).size() for each in asked], exchange.patience


def test_ranks_that_groups_connect(gloo_pool: Any) -> None:
    found = gloo_pool(8).run(connected)
    assert found == [([2, 4, 8, 8], timedelta(seconds=90))] * 8


def differing_calls(group: dist.ProcessGroup, what: str) -> list[str]:
    """Ranks make the same call, then rank 1 another one."""
    dist.barrier(group)
    model = Stack(group).eval()
    x = torch.ones(6, HIDDEN)
    optimized = optimize_allreduce(model, machine=None, debug=True, group=group)
    optimized(x)
    others = {
        "sizes": torch.ones(5, HIDDEN),
        "strides": x.t().contiguous().t(),
        "values": 2 * x,
    }
    texts = []
    with pytest.raises(CommPlanError) as caught:
        optimized(others[what] if group.rank() == 1 else x)
    texts.append(str(caught.value))
    assert torch.equal(optimized(x), optimized(x))  # all refused it: they go on together
    return texts


@pytest.mark.parametrize(
    ("what", "lines"),
    [
        ("sizes", ("where: call 2, x", "rank 1: float32[5, 16], strides (16, 1), on cpu")),
        ("strides", ("where: call 2, x", "rank 1: float32[6, 16], strides (1, 6), on cpu")),
        ("values", ("input 'x' must be the same on all ranks", "rank 1 differs from the others")),
    ],
)
def test_every_call_is_compared_in_debug_mode(
    gloo_pool: Any, what: str, lines: tuple[str, str]
) -> None:
    for (text,) in gloo_pool(4).run(differing_calls, what):
        assert all(line in text for line in lines), text
