"""The fitter: exact on curves, unmoved by outliers, honest about misses."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from bench.fit import MIB, errors, falls, fit, leave_one_out
from bench.measurements import newest, read_measurements

SIZES = [1 << i for i in range(10, 30)]
EXCERPT = read_measurements(Path(__file__).parent / "h100.csv")


def two_lines(payload: int) -> float:
    return max(8 + payload / 100_000, 40 + payload / 300_000) if payload > 4 * MIB else (
        8 + payload / 100_000
    )  # fmt: skip


def test_one_line_is_found_exactly() -> None:
    found = fit([(b, 12.5 + b / 250_000) for b in SIZES])
    (regime,) = found.curve.regimes
    assert (regime.alpha_ps, regime.beta_fs_per_byte) == (12_500_000, 4_000)
    assert found.errors.maximum < 1e-6


def test_two_regimes_are_told_apart() -> None:
    points = [(b, two_lines(b)) for b in SIZES]
    found = fit([(b, t * (1.3 if b > 64 * MIB else 1)) for b, t in points])
    assert len(found.curve.regimes) > 1
    assert found.errors.meets_targets


def test_an_outlier_does_not_move_the_line() -> None:
    points = [(b, 12.5 + b / 250_000) for b in SIZES]
    points[2] = points[2][0], 10 * points[2][1]
    found = fit(points)
    assert found.curve.regimes[0].alpha_ps == 12_500_000
    assert found.errors.maximum == pytest.approx(9, rel=1e-3)
    assert found.errors.meets_targets
    assert found.falls == ((SIZES[3], pytest.approx(points[3][1] / points[2][1])),)


def test_a_table_that_falls_misses_and_says_where() -> None:
    points = [(b, 100.0 if b % 3 == 1 else 20.0) for b in SIZES]
    found = fit(points)
    assert not found.errors.meets_targets
    assert found.errors.worst_bytes > MIB
    assert found.falls == falls(points) != ()


def test_errors_are_symmetric_ratios() -> None:
    points = [(1, 10.0), (2, 10.0), (2 * MIB, 10.0)]
    found = errors(points, [11.0, 10.0, 10 / 1.25])
    assert found.median == pytest.approx(0.1)
    assert found.maximum == found.maximum_above_1mib == pytest.approx(0.25)
    assert found.worst_bytes == 2 * MIB
    assert errors(points[:2], [11.0, 10.0]).maximum_above_1mib == 0


def test_interpolation_leaves_the_row_out() -> None:
    power = [(b, 3 * math.sqrt(b)) for b in SIZES]
    assert leave_one_out(power).maximum < 1e-9
    power[5] = power[5][0], 2 * power[5][1]
    assert leave_one_out(power).maximum == pytest.approx(1)


@pytest.mark.parametrize("measured", newest(EXCERPT)[0], ids=lambda m: f"{m.kind}-{m.library}")
def test_published_tables_meet_the_targets(measured) -> None:  # type: ignore[no-untyped-def]
    assert fit(measured.points).errors.meets_targets
