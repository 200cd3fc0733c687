"""Chooses grids by measurement: the table in compiler/runtime/kernels/launches.json."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from compiler.runtime.kernels.launch import FLAT_WIDTH, MAX_BLOCKS, RESIDENT_WARPS, Launch
from scripts.kernel_checks import ranks_for
from scripts.kernel_timing import Block, Body, graph_time_us

ROWS = {
    "one_shot": (2, 4, 8, 16, 32, 64, 128),
    "one_shot_norm": (1, 2, 4, 8, 16, 32, 64, 256),
    "two_shot": (4, 32, 256, 4096),
    "two_shot_norm": (1, 8, 32, 128, 512, 2048),
    "two_shot_whole_norm": (1, 8, 32, 128, 512, 2048),
}
"""Kernel -> rows on each rank's grid."""
ROW_BYTES = {8: (8192, 4096, 16384), 4: (8192, 16384), 2: (8192, 16384)}
"""World size -> bytes of a row."""
TOLERANCE = 1.02
"""Among grids this close to the fastest, the one with the fewest warps leaves most to others."""


def launches(rows: int, row_bytes: int, multiprocessors: int) -> Iterator[tuple[Launch, int]]:
    """Grids worth a try, each with its blocks on a multiprocessor."""
    vectors = row_bytes // 16
    seen = set()
    for warps in (1, 2, 4, 8, 16):
        if not 1 <= vectors // (32 * warps) <= 8:
            continue
        for per_multiprocessor in (1, 2, 4, 8):
            launch = Launch(min(rows, multiprocessors * per_multiprocessor, MAX_BLOCKS), warps)
            if per_multiprocessor * warps <= RESIDENT_WARPS and launch not in seen:
                seen.add(launch)
                yield launch, per_multiprocessor


def body_of(kernel: str, block: Block, launch: Launch) -> Body:
    """The kernel on symmetric tensors where it takes them."""
    return getattr(block, kernel)(launch)  # type: ignore[no-any-return]


def tuned(
    world_size: int, row_bytes: int, kernel: str | None = None, *, compile_only: bool = False
) -> list[list[Any]]:
    """Rows of the table for one world size and width, of all kernels or one.

    With ``compile_only`` the kernels are compiled, which several processes can do at a time.
    """
    hidden = row_bytes // 2
    kernels: tuple[str, ...] = ("one_shot_norm", "two_shot_norm", "two_shot_whole_norm")
    if hidden == FLAT_WIDTH:
        kernels += ("one_shot", "two_shot")
    kernels = kernels if kernel is None else (kernel,)
    rows = 1 if compile_only else max(ROWS[kernel][-1] for kernel in kernels)
    ranks = ranks_for(world_size, rows * world_size * row_bytes, alone=True)
    multiprocessors = ranks.workspaces[0].peers.multiprocessors
    table = []
    for kernel in kernels:
        for rows in ROWS[kernel]:
            grids = list(launches(rows, row_bytes, multiprocessors))
            total = rows * world_size if kernel.startswith("two_shot") else rows
            block = Block(ranks, 1 if compile_only else total, hidden, torch.bfloat16)
            if compile_only:
                for launch, _ in grids:
                    ranks.warm(body_of(kernel, block, launch))
                continue
            times = {
                grid: graph_time_us(ranks, body_of(kernel, block, grid[0]), repeats=7)
                for grid in grids
            }
            limit_us = TOLERANCE * min(times.values())
            fast = [grid for grid, time_us in times.items() if time_us <= limit_us]
            launch, per_multiprocessor = min(
                fast, key=lambda grid: (grid[0].blocks * grid[0].warps, grid[0].warps)
            )
            row = [kernel, world_size, row_bytes, rows, launch.warps, per_multiprocessor]
            table.append([*row, round(times[launch, per_multiprocessor], 2)])
    return table
