"""Time as a function of payload: one Hockney line per regime.

    t(m) = alpha_r + beta_r * m      for payloads m from regime r's first byte to that of the next

A regime is what a library does over a range of payloads: a protocol, an algorithm, a kernel.
Curves never fall: where a table of measurements does, its curve is level until it rises again.
All numbers are integers, so that sums and comparisons of times are exact.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from compiler.cost.units import FS_PER_PS


@dataclass(frozen=True)
class Regime:
    """One line.

    Attributes:
        from_bytes: the smallest payload it holds for.
        alpha_ps: latency.
        beta_fs_per_byte: inverse bandwidth per byte of payload, in femtoseconds.
    """

    from_bytes: int
    alpha_ps: int
    beta_fs_per_byte: int

    def time_ps(self, payload_bytes: int) -> int:
        """The line's value, rounded to the nearest picosecond."""
        wire_fs = self.beta_fs_per_byte * payload_bytes
        return self.alpha_ps + (wire_fs + FS_PER_PS // 2) // FS_PER_PS


@dataclass(frozen=True)
class Curve:
    """Regimes in order of payload, the first from 0 bytes on. Built by ``monotone``."""

    regimes: tuple[Regime, ...]

    def regime(self, payload_bytes: int) -> Regime:
        """The regime that holds for a payload."""
        return next(r for r in reversed(self.regimes) if r.from_bytes <= payload_bytes)

    def time_ps(self, payload_bytes: int) -> int:
        """Time of one call; payloads beyond the last regime's data follow its line."""
        return self.regime(payload_bytes).time_ps(payload_bytes)


def is_monotone(regimes: Iterable[Regime]) -> bool:
    """Whether the regimes start at 0 bytes, follow each other and never fall."""
    pieces = tuple(regimes)
    return (
        bool(pieces)
        and pieces[0].from_bytes == 0
        and all(r.alpha_ps >= 0 and r.beta_fs_per_byte >= 0 for r in pieces)
        and all(
            a.from_bytes < b.from_bytes and a.time_ps(b.from_bytes) <= b.time_ps(b.from_bytes)
            for a, b in pairwise(pieces)
        )
    )


def monotone(regimes: Iterable[Regime]) -> Curve:
    """The least curve that never falls and is nowhere below the regimes.

    Where a regime starts below the end of the one before it, a level one is put between them.
    """
    pieces = sorted(regimes, key=lambda r: r.from_bytes)
    assert [r.from_bytes for r in pieces[:1]] == [0], f"no regime starts at 0 bytes: {pieces[:1]}"
    kept: list[Regime] = []
    for regime, following in zip(pieces, [*pieces[1:], None], strict=True):
        level = kept[-1].time_ps(regime.from_bytes) if kept else 0
        if regime.time_ps(regime.from_bytes) >= level:
            kept.append(regime)
            continue
        kept.append(Regime(regime.from_bytes, level, 0))
        reached = _reaches(regime, level)
        if reached is not None and (following is None or reached < following.from_bytes):
            kept.append(Regime(reached, regime.alpha_ps, regime.beta_fs_per_byte))
    assert is_monotone(kept), f"not monotone: {kept}"
    return Curve(tuple(kept))


def _reaches(regime: Regime, level_ps: int) -> int | None:
    """The smallest payload at which the line is at ``level_ps``, None if it is level itself."""
    if regime.beta_fs_per_byte == 0:
        return None
    missing_fs = (level_ps - regime.alpha_ps) * FS_PER_PS
    return -(-missing_fs // regime.beta_fs_per_byte)


def ring_law(neighbours: tuple[tuple[int, Curve], tuple[int, Curve]], ranks: int) -> Curve:
    """The curve of a rank count that was not measured, from those of two that were.

    In a ring, latency is linear in the number of ranks n and inverse bandwidth in (n - 1) / n,
    the bytes each rank sends per byte of payload; both lines go through the known two.
    """
    (n0, first), (n1, second) = neighbours
    starts = sorted({r.from_bytes for curve in (first, second) for r in curve.regimes})
    regimes = []
    for start in starts:
        a, b = first.regime(start), second.regime(start)
        alpha_ps = a.alpha_ps + (b.alpha_ps - a.alpha_ps) * (ranks - n0) // (n1 - n0)
        # ((n-1)/n - (n0-1)/n0) / ((n1-1)/n1 - (n0-1)/n0), as a fraction of integers
        share = (ranks - n0) * n1, (n1 - n0) * ranks
        rise = (b.beta_fs_per_byte - a.beta_fs_per_byte) * share[0] // share[1]
        regimes.append(Regime(start, max(alpha_ps, 0), max(a.beta_fs_per_byte + rise, 0)))
    return monotone(regimes)
