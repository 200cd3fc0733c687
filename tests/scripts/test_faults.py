"""Every fault of one rank is reported by the others, in time."""

import multiprocessing

import pytest

from scripts.faults import CASES, row

IN_TIME_S = 20.0
"""Ten after it is certain; the rest is what this machine takes to plan."""


@pytest.mark.campaign
@pytest.mark.parametrize("name", CASES)
def test_the_others_say_what_is_wrong(name: str) -> None:
    one = row(name)
    assert one.is_clear, one.ranks
    assert one.seconds < IN_TIME_S
    assert not [p for p in multiprocessing.active_children() if p.is_alive()]


def test_a_rank_that_is_killed_is_named_by_the_others() -> None:
    one = row("killed while planning")
    assert one.is_clear, one.ranks
    assert one.now.startswith(
        "0, 1, 3: ExchangeError; 2: SIGKILL. found: rank 2: its process N has "
    )
    assert one.seconds < IN_TIME_S
