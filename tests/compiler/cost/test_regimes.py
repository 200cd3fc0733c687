"""Curves of Hockney lines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.cost.regimes import Curve, Regime, is_monotone, monotone, ring_law

LINES = st.lists(
    st.tuples(st.integers(1, 1 << 30), st.integers(0, 10**9), st.integers(0, 10**6)), max_size=5
)


def test_a_line() -> None:
    assert Regime(0, 5_000_000, 2_500).time_ps(1 << 20) == 5_000_000 + 2_621_440
    assert Regime(0, 7, 1).time_ps(500) == 8  # rounded to the nearest picosecond


def test_regimes_by_payload() -> None:
    curve = monotone([Regime(0, 10, 0), Regime(100, 0, 1000)])
    assert [curve.time_ps(b) for b in (0, 99, 100, 200)] == [10, 10, 100, 200]
    assert curve.regime(99).alpha_ps == 10


def test_level_where_the_next_line_starts_lower() -> None:
    curve = monotone([Regime(0, 0, 2000), Regime(100, 0, 1000)])
    assert curve.regimes == (Regime(0, 0, 2000), Regime(100, 200, 0), Regime(200, 0, 1000))


def test_a_line_that_never_rises_again_is_left_out() -> None:
    assert monotone([Regime(0, 50, 0), Regime(9, 20, 0)]).regimes == (
        Regime(0, 50, 0),
        Regime(9, 50, 0),
    )


@given(LINES, st.lists(st.integers(0, 1 << 31), min_size=2, max_size=8))
def test_curves_never_fall_and_are_nowhere_below_their_lines(
    lines: list[tuple[int, int, int]], payloads: list[int]
) -> None:
    starts = {start: Regime(start, alpha, beta) for start, alpha, beta in lines}
    given_lines = [Regime(0, 3, 7), *starts.values()]
    curve, raw = (
        monotone(given_lines),
        Curve(tuple(sorted(given_lines, key=lambda r: r.from_bytes))),
    )
    times = [curve.time_ps(b) for b in sorted(payloads)]
    assert times == sorted(times)
    assert all(curve.time_ps(b) >= raw.time_ps(b) for b in payloads)


@pytest.mark.parametrize(
    "regimes",
    [
        (),
        (Regime(1, 0, 0),),
        (Regime(0, 0, 0), Regime(0, 1, 0)),
        (Regime(0, 9, 0), Regime(5, 8, 0)),
        (Regime(0, -1, 0),),
        (Regime(0, 0, -1),),
    ],
)
def test_what_is_no_curve(regimes: tuple[Regime, ...]) -> None:
    assert not is_monotone(regimes)


def test_ring_law_is_exact_on_rings() -> None:
    def ring(ranks: int) -> Curve:
        beta = 4_200_000 * (ranks - 1) // ranks
        return monotone([Regime(0, 1_000 * (ranks - 1), beta)])

    for pair, ranks in (((2, 4), 3), ((4, 8), 6), ((2, 4), 8)):
        known = (pair[0], ring(pair[0])), (pair[1], ring(pair[1]))
        assert ring_law(known, ranks) == ring(ranks)
