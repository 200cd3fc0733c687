"""Fits curves to tables of measured times, and says how well they fit.

A candidate line goes through two points of the table, or through one with no latency or no
inverse bandwidth; the best one has the least sum of |ln(model / measured)|, which a few outliers
do not move, errors beyond the target weighing more. The table is cut into as few runs of at least
three sizes as meet the targets, each with a line of its own; dynamic programming finds the cuts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from compiler.cost.regimes import Curve, Regime, monotone
from compiler.cost.units import FS_PER_PS, FS_PER_US, PS_PER_US

Points = Sequence[tuple[int, float]]
"""(payload bytes, microseconds), payloads ascending and distinct."""

MIB = 1 << 20
MEDIAN_TARGET, MAXIMUM_TARGET = 0.05, 0.20
MAX_REGIMES, MIN_POINTS = 5, 3
BEYOND_TARGET = 10.0
"""How many times an error counts where it is beyond the maximum."""


@dataclass(frozen=True)
class Errors:
    """Errors of a model on a table, as exp(|ln(model / measured)|) - 1.

    Attributes:
        median: over all rows.
        maximum: over all rows.
        maximum_above_1mib: over rows of more than 1 MiB, 0 without such rows.
        worst_bytes: the row of ``maximum_above_1mib``, or of ``maximum`` without such rows.
    """

    median: float
    maximum: float
    maximum_above_1mib: float
    worst_bytes: int

    @property
    def meets_targets(self) -> bool:
        """Whether the median, and the maximum above 1 MiB, are within the targets."""
        return self.median <= MEDIAN_TARGET and self.maximum_above_1mib <= MAXIMUM_TARGET


@dataclass(frozen=True)
class Fit:
    """A curve with its errors, beside those of the table against itself.

    Attributes:
        curve: the model.
        errors: its errors.
        yardstick: errors of log-log interpolation that leaves out the row it predicts.
        falls: rows that took less time than a smaller payload: (bytes, time as a share of it).
    """

    curve: Curve
    errors: Errors
    yardstick: Errors
    falls: tuple[tuple[int, float], ...]


def fit(points: Points) -> Fit:
    """The curve of the fewest regimes that meets the targets, or else of the least errors."""
    assert len(points) >= MIN_POINTS, f"{len(points)} points; a line needs {MIN_POINTS}"
    fits = [_cut(points, n) for n in range(1, min(MAX_REGIMES, len(points) // MIN_POINTS) + 1)]
    rated = [(curve, errors(points, [curve.time_ps(b) / PS_PER_US for b, _ in points]))
             for curve in fits]  # fmt: skip
    good = [one for one in rated if one[1].meets_targets]
    best = good[0] if good else min(rated, key=lambda one: _missed(one[1]))
    return Fit(*best, leave_one_out(points), falls(points))


def _missed(errors: Errors) -> tuple[float, float]:
    """The median decides among tables that miss a target, then the maximum."""
    return max(errors.median, MEDIAN_TARGET), errors.maximum_above_1mib


def errors(points: Points, model_us: Sequence[float]) -> Errors:
    """Errors of ``model_us`` on the table, row by row."""
    rows = [
        (math.exp(abs(math.log(us / measured))) - 1, payload)
        for us, (payload, measured) in zip(model_us, points, strict=True)
    ]
    above = [row for row in rows if row[1] > MIB]
    maximum, worst = max(above or rows)
    return Errors(
        median=float(np.median([error for error, _ in rows])),
        maximum=max(rows)[0],
        maximum_above_1mib=maximum if above else 0.0,
        worst_bytes=worst,
    )


def leave_one_out(points: Points) -> Errors:
    """Errors of predicting every row but the first and last from its neighbours, log-log."""
    inner, predicted = points[1:-1], []
    for (b0, t0), (b, _), (b1, t1) in zip(points, points[1:], points[2:], strict=False):
        share = math.log(b / b0) / math.log(b1 / b0)
        predicted.append(math.exp((1 - share) * math.log(t0) + share * math.log(t1)))
    return errors(inner, predicted)


def falls(points: Points) -> tuple[tuple[int, float], ...]:
    """Rows faster than the row before, up to 1 MiB by over a tenth: not a law's doing."""
    return tuple(
        (b1, t1 / t0) for (b0, t0), (b1, t1) in pairwise(points) if t1 < (0.9 * t0, t0)[b1 > MIB]
    )


@dataclass(frozen=True)
class _Lines:
    """Lines over the first rows of a table: their loss, the last one, its least value, the rest."""

    loss: float
    regime: Regime
    level_ps: int
    before: _Lines | None

    def time_ps(self, payload_bytes: int) -> int:
        """The last line's value, or where the one before it ends."""
        return max(self.level_ps, self.regime.time_ps(payload_bytes))

    def regimes(self) -> list[Regime]:
        """In order of payload."""
        return [*(self.before.regimes() if self.before else ()), self.regime]


def _cut(points: Points, regimes: int) -> Curve:
    """The best curve of ``regimes`` lines, each chosen for the best ones before it."""
    count = len(points)
    payloads = np.array([b for b, _ in points], dtype=float)
    times = np.array([t for _, t in points])
    ends: dict[int, _Lines | None] = {0: None}  # number of rows -> best lines over them
    for _ in range(regimes):
        following: dict[int, _Lines | None] = {}
        for start, before in ends.items():
            if start == count:
                continue
            level_ps = before.time_ps(points[start - 1][0]) if before else 0
            for end in range(start + MIN_POINTS, count + 1):
                loss, alpha_us, beta_us = _line(
                    payloads[start:end], times[start:end], level_ps / PS_PER_US
                )
                loss += before.loss if before else 0.0
                curve = following.get(end)
                if curve is None or loss < curve.loss:
                    line = Regime(0, round(alpha_us * PS_PER_US), round(beta_us * FS_PER_US))
                    if before:
                        gap = points[start - 1][0], points[start][0]
                        line = replace(line, from_bytes=_meeting(before.regime, line, gap))
                    following[end] = _Lines(loss, line, level_ps, before)
        ends = following
    best = ends[count]
    assert best is not None, "every run has a line"
    return monotone(best.regimes())


def _meeting(before: Regime, after: Regime, gap: tuple[int, int]) -> int:
    """Where a regime ends whose last row is ``gap[0]`` and the next one's first row ``gap[1]``.

    At the next row; or where the lines meet, if the first would be above the second there.
    """
    slower = before.beta_fs_per_byte - after.beta_fs_per_byte
    if before.time_ps(gap[1]) <= after.time_ps(gap[1]) or slower <= 0:
        return gap[1]
    meeting = (after.alpha_ps - before.alpha_ps) * FS_PER_PS // slower
    return min(max(meeting, gap[0] + 1), gap[1])


def _line(
    payloads: NDArray[np.float64], times: NDArray[np.float64], level_us: float
) -> tuple[float, float, float]:
    """Loss, alpha [us] and beta [us per byte] of the best line, nowhere below ``level_us``."""
    i, j = np.triu_indices(len(payloads), 1)
    beta = (times[j] - times[i]) / (payloads[j] - payloads[i])
    alpha = times[i] - beta * payloads[i]
    zero = np.zeros(len(payloads))
    alpha = np.concatenate([alpha, times, zero])
    beta = np.concatenate([beta, zero, times / payloads])
    valid = (alpha >= 0) & (beta >= 0)
    alpha, beta = alpha[valid], beta[valid]
    model = np.maximum(alpha[:, None] + beta[:, None] * payloads, level_us)
    error = np.abs(np.log(model / times))
    beyond = np.where(payloads > MIB, np.maximum(error - math.log(1 + MAXIMUM_TARGET), 0), 0)
    loss = (error + BEYOND_TARGET * beyond).sum(axis=1)
    at = int(loss.argmin())
    return float(loss[at]), float(alpha[at]), float(beta[at])
