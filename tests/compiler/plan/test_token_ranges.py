"""Token ranges against brute force over every count.

What ``token_ranges`` guarantees of any prices: a solved plan at every count of its grid, and on
both sides of every boundary. Between, the grid may miss a plan that is cheapest in a small interval
only, where neither a grid count nor the crossing of the plans around it lies. Prices that are
linear in the count cannot hide one: their lower envelope is concave.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.plan.token_ranges import GRID_RATIO, TOLERANCE, TokenRange, token_ranges, token_table
from tests.support.seeds import share

Curve = tuple[int, tuple[tuple[int, int], ...]]
"""A price: a base, and by how much it grows per token from each of some counts on."""

UNLIMITED = 10**12


def price(plan: Curve, count: int) -> int:
    base, bends = plan
    return base + sum(slope * max(0, count - start) for start, slope in bends)


def cheapest(plans: list[Curve], count: int) -> Curve:
    return min(plans, key=lambda plan: price(plan, count))


def ranges(plans: list[Curve], first: int, last: int) -> tuple[TokenRange[Curve], ...]:
    return token_ranges(
        lambda count: cheapest(plans, count), price, first, last, lambda cost, than, _: cost < than
    )


def by_count(found: tuple[TokenRange[Curve], ...]) -> dict[int, Curve]:
    return {count: r.plan for r in found for count in range(r.first, r.last + 1)}


LINES = st.builds(lambda a, b: (a, ((0, b),)), st.integers(0, 2000), st.integers(0, 40))
BENT = st.builds(
    lambda base, bends: (base, tuple(bends)),
    st.integers(0, 2000),
    st.lists(st.tuples(st.integers(0, 300), st.integers(-20, 40)), max_size=4),
)
BOUNDS = st.tuples(st.integers(1, 50), st.integers(0, 400)).map(lambda b: (b[0], b[0] + b[1]))


@settings(max_examples=share(300), deadline=None)
@given(st.lists(LINES, min_size=1, max_size=6), BOUNDS)
def test_linear_prices_are_answered_exactly(plans: list[Curve], bounds: tuple[int, int]) -> None:
    found = by_count(ranges(plans, *bounds))
    for count in range(bounds[0], bounds[1] + 1):
        assert price(found[count], count) == price(cheapest(plans, count), count), count


@settings(max_examples=share(300), deadline=None)
@given(st.lists(BENT, min_size=1, max_size=6), BOUNDS)
def test_any_prices_are_answered_at_the_grid_and_beside_boundaries(
    plans: list[Curve], bounds: tuple[int, int]
) -> None:
    first, last = bounds
    found = ranges(plans, first, last)
    assert (found[0].first, found[-1].last) == bounds
    for left, right in pairwise(found):
        assert (left.last + 1, left.plan == right.plan) == (right.first, False)
    asked, count = {first, last}, first
    while (count := count * GRID_RATIO) < last:
        asked.add(count)
    asked.update(count for r in found for count in (r.first, r.last))
    chosen = by_count(found)
    for count in asked:
        assert price(chosen[count], count) == price(cheapest(plans, count), count), count


FLAT, STEEP, STEEPER = (100, ()), (0, ((0, 10),)), (0, ((0, 11),))
DIP: Curve = (1000, ((0, -100), (10, 300)))
"""Free at 10 tokens, at least 100 for any other number."""


def test_one_count() -> None:
    assert ranges([FLAT, STEEP], 7, 7) == (TokenRange(7, 7, STEEP),)


def test_one_plan_everywhere_is_one_range() -> None:
    assert ranges([STEEP, STEEPER], 1, 5000) == (TokenRange(1, 5000, STEEP),)


def test_a_tie_stays_with_the_plan_for_fewer_tokens() -> None:
    assert ranges([STEEP, FLAT], 1, 64) == (TokenRange(1, 10, STEEP), TokenRange(11, 64, FLAT))


def test_a_plan_that_is_cheapest_where_two_others_cross_is_found() -> None:
    assert ranges([STEEP, FLAT, DIP], 1, 64) == (
        TokenRange(1, 9, STEEP), TokenRange(10, 10, DIP), TokenRange(11, 64, FLAT),
    )  # fmt: skip


def test_a_plan_that_is_cheapest_on_the_grid_alone_is_found() -> None:
    at_grid: Curve = (800, ((0, -100), (8, 300)))
    found = ranges([FLAT, at_grid], 1, 64)
    assert [r.plan for r in found] == [FLAT, at_grid, FLAT]
    assert (found[1].first, found[1].last) == (8, 8)


def test_a_plan_that_is_cheapest_between_grid_and_crossing_is_missed() -> None:
    assert cheapest([FLAT, DIP], 10) == DIP
    assert ranges([FLAT, DIP], 1, 64) == (TokenRange(1, 64, FLAT),)


@settings(max_examples=share(200), deadline=None)
@given(st.lists(LINES, min_size=1, max_size=5), BOUNDS, st.sampled_from((1, 2, 4, 8)))
def test_a_table_covers_every_count_and_no_range_could_be_given_up(
    plans: list[Curve], bounds: tuple[int, int], ranks: int
) -> None:
    table = token_table(lambda n: cheapest(plans, n), price, *bounds, ranks, lambda n: UNLIMITED)
    counts = range(bounds[0], bounds[1] + 1)
    for of_table, meant in (
        (table.even, [n for n in counts if n % table.ranks == 0]),
        (table.uneven, [n for n in counts if n % table.ranks]),
    ):
        held = [n for r in of_table for n in meant if r.first <= n <= r.last]
        assert held == meant
        for r, other in [*pairwise(of_table), *pairwise(of_table[::-1])]:
            inside = [n for n in meant if r.first <= n <= r.last]
            assert any(price(other.plan, n) > price(r.plan, n) * (1 + TOLERANCE) for n in inside)


def table_of(plans: list[Curve], limit: int = UNLIMITED) -> list[tuple[int, int, Curve]]:
    found = token_table(lambda n: cheapest(plans, n), price, 1, 400, 1, lambda n: limit)
    return [(r.first, r.last, r.plan) for r in found.ranges()]


HARDLY, CLEARLY = (99_700, ((0, 0), (100, 1))), (99_000, ((0, 0), (100, 10)))
EVEN_PRICE: Curve = (100_000, ())


def test_ranges_that_save_hardly_anything_are_given_up() -> None:
    assert table_of([EVEN_PRICE, HARDLY]) == [(1, 400, EVEN_PRICE)]
    assert [plan for *_, plan in table_of([EVEN_PRICE, CLEARLY])] == [CLEARLY, EVEN_PRICE]


def test_no_range_is_given_up_for_a_plan_beyond_the_limit() -> None:
    assert cheapest([EVEN_PRICE, HARDLY], 400) == EVEN_PRICE
    kept = table_of([EVEN_PRICE, HARDLY], limit=99_900)
    assert [plan for *_, plan in kept] == [HARDLY, EVEN_PRICE]


RISING: Curve = (0, ((0, 10_000),))
BETWEEN: Curve = (149_700, ((0, -5_000), (10, 15_000)))
"""99,700 at 10 tokens, where ``RISING`` and ``EVEN_PRICE`` cross at 100,000."""


@pytest.mark.parametrize(("limit", "inserted"), [(UNLIMITED, False), (99_900, True)])
def test_a_plan_that_saves_hardly_anything_where_two_cross_is_for_the_limit_alone(
    limit: int, inserted: bool
) -> None:
    assert cheapest([RISING, EVEN_PRICE, BETWEEN], 10) == BETWEEN
    plans = [plan for *_, plan in table_of([RISING, EVEN_PRICE, BETWEEN], limit)]
    assert plans == ([RISING, BETWEEN, EVEN_PRICE] if inserted else [RISING, EVEN_PRICE])


def test_tokens_that_ranks_cannot_share_evenly_have_their_own_plans() -> None:
    padded: Curve = (50, ())

    def solve(count: int) -> Curve:
        return FLAT if count % 4 == 0 else padded

    table = token_table(solve, price, 1, 100, 4, lambda n: UNLIMITED)
    assert [table.plan(n) for n in (4, 100, 104, 1000)] == [FLAT] * 4
    assert [table.plan(n) for n in (1, 3, 99, 101)] == [padded] * 4
    assert (table.even[0].first, table.uneven[0].first) == (4, 1)


def test_a_table_without_counts_that_ranks_share_evenly() -> None:
    table = token_table(lambda n: STEEP, price, 1, 3, 4, lambda n: UNLIMITED)
    assert (table.ranks, table.uneven) == (1, ())
    assert {table.plan(n) for n in range(1, 9)} == {STEEP}


def test_a_mapped_table_answers_for_the_same_counts() -> None:
    table = token_table(lambda n: cheapest([STEEP, FLAT], n), price, 1, 100, 2, lambda n: UNLIMITED)
    named = table.map(lambda tokens: "steep" if tokens.plan == STEEP else "flat")
    assert [named.plan(n) for n in (2, 3, 50, 51)] == ["steep", "steep", "flat", "flat"]


@pytest.mark.parametrize("tokens", [0, 10**6])
def test_counts_outside_the_table_have_the_nearest_range(tokens: int) -> None:
    table = token_table(lambda n: cheapest([STEEP, FLAT], n), price, 1, 100, 1, lambda n: UNLIMITED)
    assert table.plan(tokens) == (FLAT if tokens else STEEP)


def test_counts_are_multiples_of_a_step() -> None:
    asked: list[int] = []

    def solve(count: int) -> Curve:
        asked.append(count)
        return cheapest([STEEP, FLAT], count)

    table = token_table(solve, price, 3, 100, 4, lambda n: UNLIMITED, step=8)
    assert not table.uneven
    assert (table.even[0].first, table.even[-1].last) == (8, 96)
    table = token_table(solve, price, 3, 100, 4, lambda n: UNLIMITED, step=6)
    assert (table.even[0].first, table.uneven[0].first) == (12, 6)
    assert all(count % 6 == 0 or count % 8 == 0 for count in asked)
