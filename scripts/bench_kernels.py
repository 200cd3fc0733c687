"""The kernels on one CUDA device: are they right, do they stay right, and how fast are they.

Several ranks run in this process, one stream each, and share the device's memory bandwidth: times
are those of all ranks together, and say what the kernels move, not what NVLink carries.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from compiler.errors import CommPlanError
from compiler.runtime.kernels.launch import LAUNCHES, _measured
from scripts import kernel_checks, kernel_choice, kernel_timing, kernel_tuning
from scripts.kernel_checks import DTYPES, RUNS, Operands, ranks_for, worst_deviation

PARTS = ("check", "repeat", "time", "host", "choice")
HIDDEN, WORLD_SIZE = 4096, 8
WIDTHS = (33, 2880, 5120, 16384)
"""Hidden sizes that are checked besides HIDDEN: odd, not powers of two, the largest."""


def check(world_size: int, dtype: str) -> dict[str, float]:
    """Largest deviation of each kernel, over edge rows and widths."""
    quiet()
    torch.use_deterministic_algorithms(True)  # torch.empty then fills with NaN
    ranks = ranks_for(world_size, 129 * HIDDEN * 4)
    cases = [*kernel_checks.shapes(world_size, HIDDEN)]
    cases += [(rows, width) for width in WIDTHS for rows in (1, world_size + 1)]
    worst = {}
    for name, run in RUNS.items():
        deviations = []
        for number, (rows, hidden) in enumerate(cases):
            offset = float(number % 2)
            o = Operands(ranks, rows, hidden, DTYPES[dtype], offset, seed=number)
            deviations.append(worst_deviation(ranks, run, o))
        worst[name] = max(deviations)
    return worst


def check_largest(name: str) -> float:
    """Deviation at 32,768 rows of 16,384 on two ranks."""
    quiet()
    ranks = ranks_for(2, 32768 * 16384 * 2, alone=True)
    o = Operands(ranks, 32768, 16384, torch.bfloat16, 0.0)
    return worst_deviation(ranks, RUNS[name], o)


def repeat(world_size: int) -> int:
    """Wrong elements in at least 1,000 calls and 1,000 calls replayed, of all kernels in turn."""
    quiet()
    ranks = ranks_for(world_size, 64 * 1024 * 2)
    return kernel_checks.repeated(ranks, launches=1000, seed=world_size)


def touch(console: Console) -> int:
    """Every kernel on both of two ranks, none of which waits: for compute-sanitizer.

    It may run kernels of different streams one after the other; ranks that wait would hang.
    """
    ranks = ranks_for(2, 64 * 264 * 2)
    for name, run in RUNS.items():
        for rows in (1, 5):
            o = Operands(ranks, rows, 264, torch.bfloat16, 0.0)
            ranks.warm(lambda rank: run(o, rank))  # noqa: B023
        console.print(f"{name}: ran")
    return len(RUNS)


def check_all(console: Console) -> dict[str, Any]:
    """Runs ``check`` for all world sizes and dtypes, in processes of their own."""
    jobs = [(world_size, dtype) for world_size in (2, 4, 8) for dtype in DTYPES]
    with multiprocessing.get_context("spawn").Pool(len(jobs)) as pool:
        deviations = pool.starmap(check, jobs)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        large = ["one-shot norm", "two-shot norm", "two-shot norm, symmetric"]
        largest = dict(zip(large, pool.map(check_largest, large), strict=True))
    table = Table(title="largest error / allowed error", title_justify="left")
    for column in ("kernel", *(f"{dtype} × {n}" for n, dtype in jobs)):
        table.add_column(column)
    for name in RUNS:
        table.add_row(name, *(f"{worst[name]:.3f}" for worst in deviations))
    console.print(table)
    console.print("32,768 rows × 16,384, bf16, 2 ranks:", largest)
    results: dict[str, Any] = {
        f"{n} {dtype}": worst for (n, dtype), worst in zip(jobs, deviations, strict=True)
    }
    return results | {"largest": largest}


def repeat_all(console: Console) -> dict[str, int]:
    """Runs ``repeat`` for all world sizes, each alone on the device."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        outcomes = dict(zip(("2", "4", "8"), pool.map(repeat, (2, 4, 8)), strict=True))
    console.print("wrong elements in 1,000 calls + 1,000 replayed, by ranks:", outcomes)
    return outcomes


def choice(console: Console, ranks: int | None) -> dict[str, Any]:
    """Runs ``kernel_choice.choice`` for all world sizes or one."""
    return {str(n): kernel_choice.choice(console, n) for n in ((ranks,) if ranks else (2, 4, 8))}


def tune_all(console: Console, kernel: str | None = None) -> list[list[Any]]:
    """Measures grids and writes the table of launches, or of one kernel its rows."""
    jobs = [(n, row_bytes) for n, widths in kernel_tuning.ROW_BYTES.items() for row_bytes in widths]
    kept = [row for row in _measured() if kernel not in (None, row[0])]
    with multiprocessing.get_context("spawn").Pool(len(jobs)) as pool:
        pool.starmap(_compile, [(*job, kernel) for job in jobs])
    rows: list[list[Any]] = []
    for world_size, row_bytes in jobs:
        rows += kernel_tuning.tuned(world_size, row_bytes, kernel)
        write_launches([*kept, *rows])
        console.print(f"{world_size} ranks, {row_bytes} bytes a row: done")
        torch.cuda.empty_cache()
    console.print(rows)
    return rows


def _compile(world_size: int, row_bytes: int, kernel: str | None) -> None:
    quiet()
    kernel_tuning.tuned(world_size, row_bytes, kernel, compile_only=True)


def write_launches(rows: list[list[Any]]) -> None:
    """One row of the table a line."""
    heading = {
        "device": torch.cuda.get_device_name(),
        "command": "python -m scripts.bench_kernels --only tune",
        "columns": "kernel, ranks on the device, bytes of a row, rows on a rank's grid, warps of a "
        "block, blocks on a multiprocessor, microseconds measured",
    }
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    text = json.dumps(heading, indent=1).removesuffix("\n}")
    LAUNCHES.write_text(f'{text},\n "launches": [\n{lines}\n ]\n}}\n')


def quiet() -> None:
    """Warnings of PyTorch about itself do not belong among results."""
    warnings.simplefilter("ignore")


def main() -> int:
    """Prints tables on standard error, JSON into the output folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only",
        choices=(*PARTS, "time-small", "tune", "touch"),
        action="append",
        help=f"default: {', '.join(PARTS)}",
    )
    parser.add_argument("--ranks", type=int, choices=(2, 4, 8), help="of choice; default: all")
    parser.add_argument("--kernel", help="that tune measures; default: all")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder; default: out")
    arguments = parser.parse_args()
    # Read when CUDA starts: with fewer queues one rank's kernel waits behind another's.
    os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] = "32"
    quiet()
    console = Console(stderr=True, width=160)
    try:
        if not torch.cuda.is_available():
            raise CommPlanError("there is no CUDA device", remedy="run it where one is")
        parts: dict[str, Callable[[Console], Any]] = {
            "check": check_all,
            "repeat": repeat_all,
            "time": kernel_timing.time_all,
            "time-small": kernel_timing.time_small,
            "host": kernel_choice.host,
            "choice": functools.partial(choice, ranks=arguments.ranks),
            "tune": functools.partial(tune_all, kernel=arguments.kernel),
            "touch": touch,
        }
        results = {}
        arguments.out.mkdir(parents=True, exist_ok=True)
        for part in arguments.only or PARTS:
            results[part] = parts[part](console)
            text = json.dumps({"device": torch.cuda.get_device_name(), **results}, indent=1)
            (arguments.out / "kernels.json").write_text(text)
    except CommPlanError as error:
        console.print(f"error: {error}", markup=False)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
