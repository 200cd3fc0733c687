"""Which kernel serves a fused reduction: the one that takes the least time by the tables.

A machine whose tables have none of this package's kernels is served as the measured machine of the
nearest link rate is; a rank count without tables as the nearest one that has some, by what a rank
reads of others: (n - 1) payloads in one shot, 2 (n - 1) / n otherwise. Nothing but sizes decides,
so ranks choose alike; and nothing but device time, so eager calls and graphs run the same kernel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from enum import StrEnum
from functools import cache, lru_cache

from compiler.cost.collective_times import library_curves
from compiler.cost.machine import Machine
from compiler.cost.machine_files import load_machine, machines
from compiler.cost.regimes import Curve
from compiler.cost.tables import Fused, Launch
from compiler.cost.units import PS_PER_US
from compiler.ir.collectives import Kind

PARTS = {
    Fused.ALL_REDUCE_ADD_NORM: (Kind.ALL_REDUCE,),
    Fused.REDUCE_SCATTER_ADD_NORM_ALL_GATHER: (Kind.REDUCE_SCATTER, Kind.ALL_GATHER),
}
"""The collectives that each does."""


class FusedKernel(StrEnum):
    """How a fused op runs. Tables of machine files name their library so.

    ONE_SHOT: every rank reads the operands of all. TWO_SHOT: each adds up a part, then all read the
    parts. COMPOSED: the group's own collectives, and a kernel for addition and norm.
    """

    ONE_SHOT = "commplan one-shot"
    TWO_SHOT = "commplan two-shot"
    COMPOSED = "commplan composed"


@lru_cache(maxsize=1 << 14)
def fused_kernel(
    machine: Machine | None, kind: Fused, payload_bytes: int, ranks: int, *, composed: bool
) -> FusedKernel:
    """The kernel that serves a payload.

    Args:
        machine: whose tables tell; None: one that nobody has measured.
        kind: what it does.
        payload_bytes: of the operand, on one rank.
        ranks: of the group, all in one node.
        composed: whether the group's own collectives are NCCL's, which tables tell of.
    """
    if machine is None or not _measured_ranks(machine):
        machine = _nearest(machine)
    times = dict(_times_ps(machine, kind, payload_bytes, ranks, composed=composed))
    return min(times, key=times.__getitem__)


def _times_ps(
    machine: Machine, kind: Fused, payload_bytes: int, ranks: int, *, composed: bool
) -> Iterator[tuple[FusedKernel, int]]:
    measured = min(_measured_ranks(machine), key=lambda n: abs(math.log2(n / ranks)))
    curves = _curves(machine, kind, measured)
    # What a rank of so many reads, as a share of what one of those measured does.
    twice = (ranks - 1) * measured, ranks * (measured - 1)
    once = ranks - 1, measured - 1
    for kernel, curve in curves.items():
        more, less = once if kernel is FusedKernel.ONE_SHOT else twice
        yield kernel, curve.time_ps(payload_bytes * more // less)
    shared = _curves(machine, Fused.REDUCE_SCATTER_ADD_NORM_ALL_GATHER, measured)
    if FusedKernel.TWO_SHOT not in curves and FusedKernel.TWO_SHOT in shared:
        rest = payload_bytes * (ranks - 1) // ranks  # of the sum, which sharing does not write
        scattered = shared[FusedKernel.TWO_SHOT].time_ps(payload_bytes * twice[0] // twice[1])
        written = rest * PS_PER_US // machine.memory_bytes_per_us
        yield FusedKernel.TWO_SHOT, scattered + written
    parts = [library_curves(machine, part, ranks) for part in PARTS[kind]]
    if composed and all(parts):
        collectives = sum(min(one.time_ps(payload_bytes) for one in part) for part in parts)
        read_and_written = 4 * payload_bytes // (ranks if len(parts) == 2 else 1)
        norm = read_and_written * PS_PER_US // machine.memory_bytes_per_us
        yield FusedKernel.COMPOSED, collectives + norm + machine.launch_ps(Launch.GRAPH)


@cache
def _measured_ranks(machine: Machine) -> tuple[int, ...]:
    """Rank counts with tables of this package's kernels."""
    counts = {table.ranks for table in machine.tables if table.kind in PARTS}
    return tuple(n for n in sorted(counts) if any(_curves(machine, kind, n) for kind in PARTS))


@cache
def _curves(machine: Machine, kind: Fused, ranks: int) -> dict[FusedKernel, Curve]:
    """Times of this package's kernels in graphs."""
    names = set(FusedKernel)
    return {
        FusedKernel(table.library): table.curve
        for table in machine.tables_of(kind, ranks)
        if table.library in names and Launch.GRAPH in table.launches
    }


@cache
def _nearest(machine: Machine | None) -> Machine:
    """Of the machines that come with the package and tell of kernels, that of the nearest link."""
    measured = [one for one in map(load_machine, machines()) if _measured_ranks(one)]

    def distance(one: Machine) -> float:
        if machine is None or machine.link is None or one.link is None:
            return 0.0
        return abs(math.log2(one.link.value / machine.link.value))

    return min(measured, key=distance)
