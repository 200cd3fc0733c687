"""Token ranges: which plan is cheapest for which number of tokens.

Plans are solved on a geometric grid. Where two neighbours differ, the first count at which the
right one is cheaper than the left is found by bisecting their prices, which is quick, and solved
too: if neither plan is the cheapest there, the one that is goes between them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

Plan = TypeVar("Plan", bound=Hashable)

GRID_RATIO = 4
"""Ratio of neighbouring token counts that are solved in any case."""


@dataclass(frozen=True)
class TokenRange(Generic[Plan]):
    """The plan for ``first`` to ``last`` tokens, both included."""

    first: int
    last: int
    plan: Plan


def token_ranges(
    solve: Callable[[int], Plan], price: Callable[[Plan, int], int], first: int, last: int
) -> tuple[TokenRange[Plan], ...]:
    """The cheapest plan for every count from ``first`` to ``last``.

    Args:
        solve: number of tokens -> the cheapest plan.
        price: plan, number of tokens -> what it costs there.
        first: least number of tokens, >= 1.
        last: greatest number of tokens.
    """
    grid = [first]
    while grid[-1] * GRID_RATIO < last:
        grid.append(grid[-1] * GRID_RATIO)
    grid += [last] if last > first else []
    solved = {count: solve(count) for count in grid}
    starts = [(first, solved[first])]
    for low, high in pairwise(grid):
        starts += _between(solve, price, (low, solved[low]), (high, solved[high]))
    kept = [s for i, s in enumerate(starts) if not i or s[1] != starts[i - 1][1]]
    ends = [start - 1 for start, _ in kept[1:]] + [last]
    return tuple(TokenRange(s, e, plan) for (s, plan), e in zip(kept, ends, strict=True))


def _between(
    solve: Callable[[int], Plan],
    price: Callable[[Plan, int], int],
    left: tuple[int, Plan],
    right: tuple[int, Plan],
) -> list[tuple[int, Plan]]:
    """Where plans begin, after ``left`` and up to ``right``."""
    (low, before), (high, after) = left, right
    if before == after:
        return []
    apart, meets = low, high  # before is the cheaper at apart, after at meets
    while meets - apart > 1:
        middle = (apart + meets) // 2
        if price(after, middle) < price(before, middle):
            meets = middle
        else:
            apart = middle
    for count in (meets, apart):
        if low < count < high:
            best = solve(count)
            if price(best, count) < min(price(before, count), price(after, count)):
                here = (count, best)
                return [*_between(solve, price, left, here), *_between(solve, price, here, right)]
    return [(meets, after)]
