"""For which payloads one kernel takes less time than another, by a machine's tables.

Serving engines have constants for this: vLLM ``CUSTOM_ALL_REDUCE_MAX_SIZES`` and
``fi_allreduce_fusion_max_size_mb``, sglang a number of tokens for fused all_reduces. On a machine
that was measured they follow from the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from compiler.cost.machine import Machine
from compiler.cost.tables import Fused, Launch, LibraryClass, Table
from compiler.cost.units import PS_PER_US
from compiler.ir.collectives import Kind

Time = Callable[[int], int]
STEPS = 4
"""Payloads per doubling at which two kernels are compared, before the crossing is bisected."""


@dataclass(frozen=True)
class Threshold:
    """The payloads for which a kernel is worth while.

    Attributes:
        kernel: what it is, and whose.
        instead_of: what runs elsewhere.
        ranks: of the group.
        wins: first and last bytes of every range of payloads in which it takes no longer.
        measured: the least and the greatest payload that was measured of both.
    """

    kernel: str
    instead_of: str
    ranks: int
    wins: tuple[tuple[int, int], ...]
    measured: tuple[int, int]


def thresholds(machine: Machine, launch: Launch = Launch.GRAPH) -> Iterator[Threshold]:
    """Yield what every custom all_reduce, and every fused kernel, of a machine is worth."""
    for ranks in sorted({table.ranks for table in machine.tables}):
        tables = [t for t in machine.tables_of(Kind.ALL_REDUCE, ranks) if launch in t.launches]
        plain = [t for t in tables if t.library_class is LibraryClass.NCCL]
        custom = [t for t in tables if t.library_class is LibraryClass.CUSTOM]
        for one in custom if plain else ():
            yield _threshold("all_reduce", one, plain, _best(plain))
        fused = machine.tables_of(Fused.ALL_REDUCE_ADD_NORM, ranks)
        for one in (t for t in fused if launch in t.launches and tables):
            yield _threshold(
                "all_reduce+add+norm", one, tables, _apart(machine, tables, launch),
            )  # fmt: skip


def _threshold(kernel: str, table: Table, others: list[Table], other: Time) -> Threshold:
    least = max(table.min_bytes, *(t.min_bytes for t in others))
    most = min(table.max_bytes, *(t.max_bytes for t in others))
    return Threshold(
        f"{kernel}, {table.library}",
        " or ".join(dict.fromkeys(t.library for t in others)),
        table.ranks,
        tuple(wins(table.curve.time_ps, other, least, most)),
        (least, most),
    )


def wins(one: Time, other: Time, least: int, most: int) -> Iterator[tuple[int, int]]:
    """Yield first and last of every range of payloads in which ``one`` takes no longer.

    Args:
        one: time by payload.
        other: likewise.
        least: the smallest payload to look at.
        most: the greatest.
    """

    def good(size: int) -> bool:
        return one(size) <= other(size)

    start = least if good(least) else None
    below = least
    while below < most:
        above = min(most, max(below + 1, round(below * 2 ** (1 / STEPS))))
        if good(above) != good(below):
            left, right = below, above
            while right - left > 1:
                middle = (left + right) // 2
                left, right = (middle, right) if good(middle) == good(below) else (left, middle)
            if start is not None:
                yield start, left
            start = right if start is None else None
        below = above
    if start is not None:
        yield start, most


def _best(tables: list[Table]) -> Time:
    return lambda size: min(table.curve.time_ps(size) for table in tables)


def _apart(machine: Machine, tables: list[Table], launch: Launch) -> Time:
    """Return what an all_reduce, and an addition and a norm in one kernel behind it, take.

    That kernel reads two tensors, and writes two.
    """
    best = _best(tables)
    norm = [4 * PS_PER_US, machine.memory_bytes_per_us, machine.launch_ps(launch)]
    return lambda size: best(size) + size * norm[0] // norm[1] + norm[2]
