"""Payloads for which one kernel takes no longer than another."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from compiler.cost import load_machine
from compiler.cost.thresholds import thresholds, wins

LEAST, MOST = 64, 1 << 20
LINES = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 20)), min_size=1, max_size=3)


def time(lines: list[tuple[int, int]]) -> Callable[[int], int]:
    """The slowest of several lines: convex, so that two of them cross a few times at most."""
    return lambda size: max(alpha + beta * size for alpha, beta in lines)


@given(LINES, LINES)
def test_inside_the_ranges_it_takes_no_longer(
    one: list[tuple[int, int]], other: list[tuple[int, int]]
) -> None:
    ranges = list(wins(time(one), time(other), LEAST, MOST))
    for first, last in ranges:
        assert LEAST <= first <= last <= MOST
        for edge in (first, last):
            assert time(one)(edge) <= time(other)(edge)
        assert first == LEAST or time(one)(first - 1) > time(other)(first - 1)
        assert last == MOST or time(one)(last + 1) > time(other)(last + 1)


def test_the_ends_are_exact_and_a_kernel_that_always_loses_has_no_range() -> None:
    assert list(wins(lambda size: size, lambda size: 1000, LEAST, MOST)) == [(LEAST, 1000)]
    assert list(wins(lambda size: 1000, lambda size: size, LEAST, MOST)) == [(1000, MOST)]
    assert list(wins(lambda size: size + 1, lambda size: size, LEAST, MOST)) == []


def test_a_machine_says_which_of_its_kernels_are_worth_while() -> None:
    listed = list(thresholds(load_machine("h200x8")))
    assert {each.ranks for each in listed} == {2, 4, 8}
    assert any(each.kernel.startswith("all_reduce+add+norm") for each in listed)
    for each in listed:
        least, most = each.measured
        assert all(least <= first <= last <= most for first, last in each.wins)
