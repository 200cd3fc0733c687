"""Token ranges: which plan is cheapest for which number of tokens.

Plans are solved on a geometric grid. Where two neighbours differ, the first count at which the
right one is cheaper than the left is found by bisecting their prices, which is quick, and solved
too: if a third plan is cheaper there by more than a tolerance, it goes between them. Were prices
linear in the count, a third plan would save nowhere more than there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import lcm
from typing import Any, Generic, TypeVar

Plan = TypeVar("Plan", bound=Hashable)
Made = TypeVar("Made")
Other = TypeVar("Other")

LAST_TOKENS = 1 << 16
"""Plans are compared up to this many tokens; the last serves for more."""

GRID_RATIO = 8
"""Ratio of neighbouring token counts that are solved in any case."""

PROBE_RATIO = 1.25
"""Ratio of neighbouring token counts at which plans are compared before a range is given up."""

TOLERANCE = 0.005
"""Part of the time that a range of its own must save."""


@dataclass(frozen=True)
class TokenRange(Generic[Made]):
    """The plan for ``first`` to ``last`` tokens, both included."""

    first: int
    last: int
    plan: Made


@dataclass(frozen=True)
class TokenTable(Generic[Made]):
    """The plan for every number of tokens.

    Rows that ranks cannot share evenly are padded, which costs; so there are two tables.

    Attributes:
        ranks: how many share rows.
        even: ranges for the numbers that ``ranks`` divides, which alone are meant.
        uneven: ranges for all others; none for one rank.
    """

    ranks: int
    even: tuple[TokenRange[Made], ...]
    uneven: tuple[TokenRange[Made], ...] = ()

    def plan(self, tokens: int) -> Made:
        """The plan for ``tokens`` tokens; outside the table, that of the nearest range."""
        ranges, lasts = self._ends[tokens % self.ranks != 0]
        return ranges[min(bisect_left(lasts, tokens), len(lasts) - 1)].plan

    @cached_property
    def _ends(self) -> tuple[tuple[tuple[TokenRange[Made], ...], list[int]], ...]:
        uneven = self.uneven or self.even
        return tuple((ranges, [r.last for r in ranges]) for ranges in (self.even, uneven))

    def is_open(self, tokens: TokenRange[Any]) -> bool:
        """Whether a range serves for more than its last: it is the last of its multiples."""
        return tokens.last > LAST_TOKENS - self.ranks

    def ranges(self) -> tuple[TokenRange[Made], ...]:
        """Those of both tables."""
        return (*self.even, *self.uneven)

    def map(self, make: Callable[[TokenRange[Made]], Other]) -> TokenTable[Other]:
        """The table of what is made of each range."""

        def made(ranges: Sequence[TokenRange[Made]]) -> tuple[TokenRange[Other], ...]:
            return tuple(TokenRange(r.first, r.last, make(r)) for r in ranges)

        return TokenTable(self.ranks, made(self.even), made(self.uneven))


def token_ranges(
    solve: Callable[[int], Plan],
    price: Callable[[Plan, int], int],
    first: int,
    last: int,
    saves: Callable[[int, int, int], bool],
) -> tuple[TokenRange[Plan], ...]:
    """The cheapest plan for every count from ``first`` to ``last``.

    Args:
        solve: number of tokens -> the cheapest plan.
        price: plan, number of tokens -> what it costs there.
        first: least number of tokens, >= 1.
        last: greatest number of tokens.
        saves: cost of a plan, cost of another, number of tokens -> whether the first saves enough
            for a range of its own.
    """
    grid = [first]
    while grid[-1] * GRID_RATIO < last:
        grid.append(grid[-1] * GRID_RATIO)
    grid += [last] if last > first else []
    solved = {count: solve(count) for count in grid}
    starts = [(first, solved[first])]
    for low, high in pairwise(grid):
        starts += _between(solve, price, saves, (low, solved[low]), (high, solved[high]))
    kept = [s for i, s in enumerate(starts) if not i or s[1] != starts[i - 1][1]]
    ends = [start - 1 for start, _ in kept[1:]] + [last]
    return tuple(TokenRange(s, e, plan) for (s, plan), e in zip(kept, ends, strict=True))


def token_table(
    solve: Callable[[int], Plan],
    price: Callable[[Plan, int], int],
    first: int,
    last: int,
    ranks: int,
    limit: Callable[[int], int],
    step: int = 1,
) -> TokenTable[Plan]:
    """The cheapest plan for every count from ``first`` to ``last``, small savings left out.

    Args:
        solve: number of tokens -> the cheapest plan.
        price: plan, number of tokens -> what it costs there.
        first: least number of tokens, >= 1.
        last: greatest number of tokens.
        ranks: how many share rows.
        limit: number of tokens -> what no plan may cost more than, whatever that would simplify.
        step: what divides every number of tokens.
    """
    both = lcm(ranks, step)
    even = range(-(-first // both) * both, last + 1, both)
    uneven = [n for n in range(-(-first // step) * step, last + 1, step) if n % ranks]

    def saves(cost: int, than: int, count: int) -> bool:
        return cost < than and (cost * (1 + TOLERANCE) < than or than > limit(count))

    def over(counts: Sequence[int]) -> tuple[TokenRange[Plan], ...]:
        if not counts:
            return ()
        solved = token_ranges(
            lambda i: solve(counts[i - 1]), lambda plan, i: price(plan, counts[i - 1]),
            1, len(counts), lambda cost, than, i: saves(cost, than, counts[i - 1]),
        )  # fmt: skip
        ranges = [TokenRange(counts[r.first - 1], counts[r.last - 1], r.plan) for r in solved]
        return tuple(_thinned(ranges, price, limit, counts))

    return TokenTable(ranks, over(even), over(uneven)) if even else TokenTable(1, over(uneven))


def _thinned(
    ranges: list[TokenRange[Plan]],
    price: Callable[[Plan, int], int],
    limit: Callable[[int], int],
    counts: Sequence[int],
) -> list[TokenRange[Plan]]:
    """Without ranges in which a neighbour's plan costs hardly more."""

    def serves(plan: Plan, given_up: TokenRange[Plan]) -> bool:
        at, high = bisect_left(counts, given_up.first), bisect_left(counts, given_up.last)
        while True:
            count = counts[at]
            most = min(price(given_up.plan, count) * (1 + TOLERANCE), limit(count))
            if price(plan, count) > most:
                return False
            if at == high:
                return True
            at = min(high, max(at + 1, int(at * PROBE_RATIO)))

    for i, token_range in enumerate(ranges):
        for j in (i - 1, i + 1):
            if 0 <= j < len(ranges) and serves(ranges[j].plan, token_range):
                low, high = min(i, j), max(i, j)
                joined = TokenRange(ranges[low].first, ranges[high].last, ranges[j].plan)
                return _thinned([*ranges[:low], joined, *ranges[high + 1 :]], price, limit, counts)
    return ranges


def _between(
    solve: Callable[[int], Plan],
    price: Callable[[Plan, int], int],
    saves: Callable[[int, int, int], bool],
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
            least = min(price(before, count), price(after, count))
            if saves(price(best, count), least, count):
                here = (count, best)
                sides = ((left, here), (here, right))
                return [start for side in sides for start in _between(solve, price, saves, *side)]
    return [(meets, after)]
