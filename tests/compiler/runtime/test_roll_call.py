"""The roll call: what ranks read of each other, and what their threads say of them."""

import logging
import time
from typing import Any

import pytest
import torch.distributed as dist

from compiler.errors import ExchangeError
from compiler.runtime import roll_call
from compiler.runtime.group_exchange import exchange_over
from compiler.runtime.model_calls import ModelCalls
from compiler.runtime.roll_call import RollCall, roll_call_of


def waits_for_one_that(group: dist.ProcessGroup, how: str) -> tuple[str, float]:
    """Rank 1 does something else than come to the meeting where rank 0 waits."""
    exchange = exchange_over(group)
    assert exchange is not None
    calls = ModelCalls(exchange.roll_call, "Stack")
    calls.connect(frozenset({0, 1}))
    exchange.gather(None)
    calls.begin()
    text, start = "", time.monotonic()
    if group.rank() == 0:
        with pytest.raises(ExchangeError) as caught:
            exchange.during("capturing").gather(None)
        assert caught.value.alone
        text = str(caught.value)
        calls.refuse(caught.value)
    elif how == "runs":
        calls.go_on(runs=True)
    else:
        calls.refuse(ValueError("no such token"))
    waited = time.monotonic() - start
    dist.barrier(group)
    if group.rank() == 1:  # what rank 0 left when it gave up
        with pytest.raises(ExchangeError, match="rank 0 failed"):
            exchange.during("capturing").gather(None)
    calls.end()
    return text, waited


@pytest.mark.parametrize(
    ("how", "why"),
    [("runs", "it is running call 1 of Stack already"), ("raises", "ValueError: no such token")],
)
def test_a_rank_that_cannot_come_is_not_waited_for(gloo_pool: Any, how: str, why: str) -> None:
    (text, waited), _ = gloo_pool(2).run(waits_for_one_that, how)
    assert text.startswith("rank 1 will not arrive\n  where: meeting ")
    assert ", capturing\n" in text
    assert why in text
    assert waited < 10  # the group's timeout is 180 s


def breaks(group: dist.ProcessGroup) -> str:
    """Rank 1 fails in a call; a collective of rank 0 breaks."""
    calls = ModelCalls(roll_call_of(group), "Stack")
    calls.begin()
    calls.go_on(runs=True)
    error = RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc] Connection closed by peer")

    def run() -> None:
        raise error if group.rank() == 0 else ValueError("no such expert")

    with pytest.raises(Exception) as caught:  # noqa: PT011 -- of either rank its own
        calls.run(run, ())
    dist.barrier(group)
    calls.end()
    return f"{type(caught.value).__name__}: {caught.value}"


def test_a_broken_collective_is_explained_by_the_rank_that_broke_it(gloo_pool: Any) -> None:
    first, second = gloo_pool(2).run(breaks)
    assert first == (
        "ExchangeError: rank 1 left call 1 of Stack\n"
        "  found: rank 1: it failed: ValueError: no such expert\n"
        "  remedy: see what these ranks report; then start all ranks anew"
    )
    assert second == "ValueError: no such expert"


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def stuck(group: dist.ProcessGroup) -> list[str]:
    """Rank 0 is in a call for long that rank 1 has left."""
    calls, lines = ModelCalls(roll_call_of(group), "Stack"), Lines()
    roll_call.SLOW_S = 0.2
    roll_call.LOG.addHandler(lines)
    try:
        calls.begin()
        calls.go_on(runs=group.rank() == 0)
        roll_call_of(group).tell()
        last = time.monotonic() + 20
        while group.rank() == 0 and not lines.lines and time.monotonic() < last:
            time.sleep(0.05)
        dist.barrier(group)
        calls.end()
    finally:
        roll_call.LOG.removeHandler(lines)
        roll_call.SLOW_S = 10.0
    return lines.lines


def test_a_rank_that_is_stuck_in_a_call_says_who_is_elsewhere(gloo_pool: Any) -> None:
    first, second = gloo_pool(2).run(stuck)
    assert first == [
        "rank 0 has been running call 1 of Stack for 0 s; rank 1: after call 1 of Stack"
    ]
    assert second == []


def keys(group: dist.ProcessGroup) -> tuple[int, int]:
    exchange = exchange_over(group)
    assert exchange is not None
    counts = []
    for _ in range(2):
        for _ in range(5):
            exchange.gather(exchange.rank)
        counts.append(len(exchange.roll_call.keys))
    return counts[0], counts[1]


def test_meetings_leave_a_constant_number_of_keys(gloo_pool: Any) -> None:
    assert gloo_pool(2).run(keys) == [(2, 2)] * 2


def test_a_group_has_one_roll_call(gloo_pool: Any) -> None:
    assert gloo_pool(2).run(is_one) == [True, True]


def is_one(group: dist.ProcessGroup) -> bool:
    return isinstance(roll_call_of(group), RollCall) and roll_call_of(group) is roll_call_of(group)
