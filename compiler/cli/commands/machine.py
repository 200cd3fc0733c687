"""``commplan machine``: times of collectives and kernels on machines, shipped, fitted, measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.table import Column
from rich.text import Text

from bench.fit import MAXIMUM_TARGET, MEDIAN_TARGET
from bench.measure import measured_machine
from bench.measurements import (
    FittedTable,
    Measurements,
    machine_text,
    newest,
    read_measurements,
    refitted,
)
from compiler.cli.inputs.files import make_folder, write_text
from compiler.cli.render.collectives import bytes_text
from compiler.cli.render.document import Block, Document
from compiler.cli.render.progress import Stages, new_table, number_column
from compiler.cost import Machine, MachineError, load_machine, machines
from compiler.cost.machine_fields import check_name
from compiler.cost.machine_files import FOLDER, parse_machine, read_json
from compiler.cost.tables import Quantity, Table

MAX_BYTES, MAX_BYTES_CPU = 1 << 28, 1 << 22


def list_machines(format: str) -> int:
    """List the machines that come with the package."""
    every = {m: sorted({table.ranks for table in m.tables}) for m in map(load_machine, machines())}
    values = [{"name": m.name, "title": m.title, "ranks": ranks} for m, ranks in every.items()]
    rows = new_table("name", "", "tables of ranks", "memory TB/s", "bf16 TFLOP/s")
    for m, ranks in every.items():
        rates = m.memory_bytes_per_us / 1e6, m.matmul_flop_per_us(torch.bfloat16) / 1e6
        rows.add_row(
            m.name, m.title, ", ".join(map(str, ranks)), f"{rates[0]:.2f}", f"{rates[1]:.0f}"
        )
    Document("machines/1", {"machines": values}, [rows]).print(format)
    return 0


def show(name: str, ranks: int | None, format: str) -> int:
    """Show a machine's numbers with their sources."""
    one = load_machine(name)
    tables = [table for table in one.tables if ranks in (None, table.ranks)]
    if ranks is not None and not tables:
        counts = sorted({table.ranks for table in one.tables})
        raise MachineError(
            f"machine {one.name!r} has no tables of {ranks} ranks",
            found=f"tables of {', '.join(map(str, counts)) or 'none'}",
            remedy="name one of these, or leave --ranks out",
        )
    Document("machine/1", machine_json(one, tables), machine_blocks(one, tables)).print(format)
    return 0


def quantities(one: Machine) -> dict[str, Quantity]:
    """Return everything of a machine that is one number."""
    numbers = {
        "link, each way": one.link,
        "memory": one.memory,
        **{f"matmul {dtype}": rate for dtype, rate in one.matmul.items()},
        **{f"launch, {launch}": time for launch, time in one.launch.items()},
        "network, each way": one.network.link if one.network is not None else None,
    }
    return {name: number for name, number in numbers.items() if number is not None}


def machine_blocks(one: Machine, tables: Sequence[Table]) -> list[Block]:
    """Return the numbers, then the regimes of every table, then where the tables come from."""
    title = Text.assemble((one.name, "bold"), f"  {one.title}")
    numbers = new_table("", "", "", "source")
    for name, number in quantities(one).items():
        numbers.add_row(name, f"{number.value:,}", number.unit, number.source)
    sources = list(dict.fromkeys(table.source for table in tables))
    headings = "from", "alpha us", "GB/s", "median", "max", "source"
    regimes = new_table("", *map(number_column, headings))
    for table in tables:
        left = [table_text(table.kind, table)]
        right = [percent(table.median_error), percent(table.maximum_error)]
        right.append(str(sources.index(table.source) + 1))
        for regime in table.curve.regimes:
            rate = f"{1e6 / regime.beta_fs_per_byte:.1f}" if regime.beta_fs_per_byte else "-"
            line = [bytes_text(regime.from_bytes), f"{regime.alpha_ps / 1e6:.2f}", rate]
            regimes.add_row(*left, *line, *right)
            left, right = [""] * len(left), [""] * len(right)
    lines = [f"{i}: {source}" for i, source in enumerate(sources, 1)]
    if one.network is not None:
        lines += [
            f"network, {p.name}: {p.base_ps / 1e6:.1f} us + {p.step_ps / 1e6:.1f} us a step, "
            f"{p.bytes_per_us / 1e3:.0f} GB/s"
            for p in one.network.protocols
        ]
        lines.append(one.network.source)
    return [title, numbers, regimes, *lines]


def table_text(kind: str, one: Table | Measurements) -> str:
    """Return ``all_reduce, 8 ranks, NCCL 2.29, eager``."""
    return f"{kind}, {one.ranks} ranks, {one.library}, {', '.join(one.launches)}"


def percent(share: float | None) -> str:
    """Return ``12.3 %``."""
    return "" if share is None else f"{100 * share:.1f} %"


def machine_json(one: Machine, tables: Sequence[Table]) -> dict[str, Any]:
    """Return the numbers as JSON values."""
    return {
        "name": one.name,
        "title": one.title,
        "ranks_per_node": one.ranks_per_node,
        "quantities": {name: asdict(number) for name, number in quantities(one).items()},
        "tables": [
            {
                "kind": str(table.kind),
                "ranks": table.ranks,
                "library": table.library,
                "launches": list(table.launches),
                "regimes": [asdict(regime) for regime in table.curve.regimes],
                "median_error": table.median_error,
                "maximum_error_above_1mib": table.maximum_error,
                "source": table.source,
            }
            for table in tables
        ],
    }


def fit_machines(
    measurements: Path, names: Sequence[str] | None, folder: Path | None, format: str
) -> int:
    """Fit machine files to a table of measurements and print the errors."""
    stages = Stages()
    with stages.stage("read", str(measurements)):
        rows = read_measurements(measurements)
    fitted: dict[str, tuple[FittedTable, ...]] = {}
    for name in names or machines():
        path = Path(name) if name.endswith(".json") else FOLDER / f"{load_machine(name).name}.json"
        with stages.stage("fit", name):
            data, tables = refitted(read_json(path), rows)
        parse_machine(data, path)
        fitted[data["name"]] = tables
        if folder is not None:
            make_folder(folder)
            write_text(folder / f"{data['name']}.json", machine_text(data))
    blocks = [*error_blocks(fitted), *unused_lines(rows, fitted)]
    Document("fit/1", {"machines": errors_json(fitted)}, blocks).print(format)
    return 0


def errors_json(fitted: dict[str, tuple[FittedTable, ...]]) -> dict[str, Any]:
    """Return every table with its errors, per machine."""
    return {
        name: [
            one.to_json()
            | {"yardstick_median": one.fit.yardstick.median,
               "yardstick_maximum_above_1mib": one.fit.yardstick.maximum_above_1mib,
               "meets_targets": one.fit.errors.meets_targets}
            for one in tables
        ]
        for name, tables in fitted.items()
    }  # fmt: skip


def error_blocks(fitted: dict[str, tuple[FittedTable, ...]]) -> list[Block]:
    """Return a row per table: errors of the model, and of the table against itself."""
    errors = "median", "max > MiB", "max", "own median", "own max"
    first = Column("", min_width=22, overflow="fold")
    note = "max > MiB: above 1 MiB of payload; own: of the table itself, interpolated"
    rows = new_table(first, *map(number_column, errors), caption=note)
    missed = []
    for name, tables in fitted.items():
        for one in tables:
            m, e, y = one.measured, one.fit.errors, one.fit.yardstick
            shares = e.median, e.maximum_above_1mib, e.maximum, y.median, y.maximum_above_1mib
            size = f"{len(m.points)} rows, {len(one.fit.curve.regimes)} regimes"
            rows.add_row(f"{name}: {table_text(m.kind, m)}: {size}", *map(percent, shares))
            if not e.meets_targets:
                missed.append(one)
        rows.add_section()
    total = sum(map(len, fitted.values()))
    within = (
        f"{total - len(missed)} of {total} tables within {percent(MEDIAN_TARGET)} median and "
        f"{percent(MAXIMUM_TARGET)} above 1 MiB"
    )
    return [rows, within, *map(missed_text, missed)]


def missed_text(one: FittedTable) -> str:
    """Return why a table misses a target: its worst row, and rows no monotone model can meet."""
    m, worst = one.measured, one.fit.errors.worst_bytes
    at = [payload for payload, _ in m.points].index(worst)
    around = ", ".join(f"{bytes_text(b)} {t:g} us" for b, t in m.points[max(at - 1, 0) : at + 2])
    falls = ", ".join(
        f"{bytes_text(b)} takes {share:.2f} of the row before" for b, share in one.fit.falls
    )
    return (
        f"missed: {m.gpu} {table_text(m.kind, m)}: "
        f"worst at {bytes_text(worst)} ({around}){'; ' * bool(falls)}{falls}"
    )


def unused_lines(
    rows: Sequence[Measurements], fitted: dict[str, tuple[FittedTable, ...]]
) -> Iterator[str]:
    """Yield which tables no machine has: older versions, and GPUs without a machine."""
    used = {one.measured for tables in fitted.values() for one in tables}
    _, older = newest(rows)
    for title, left in (
        ("older versions", older),
        ("no machine", [one for one in rows if one not in used and one not in older]),
    ):
        names = dict.fromkeys(f"{one.gpu} {one.library}" for one in left)
        if left:
            count = sum(len(one.points) for one in left)
            yield f"not used, {title}: {len(left)} tables, {count} rows: {', '.join(names)}"


def measure(name: str, min_bytes: int, max_bytes: int | None, output: Path | None) -> int:
    """Measure this machine and write its file."""
    check_name(name)

    def sizes(device: torch.device) -> list[int]:
        largest = max_bytes or (MAX_BYTES if device.type == "cuda" else MAX_BYTES_CPU)
        return [min_bytes << i for i in range((largest // min_bytes).bit_length())]

    if max_bytes is not None and max_bytes < min_bytes:
        raise MachineError(
            "the largest payload is below the smallest",
            where="--max-bytes",
            found=f"{min_bytes} to {max_bytes} bytes",
        )
    with ExitStack() as stack:
        data = measured_machine(
            name, sizes, lambda: stack.enter_context(Stages().stage("measure", name))
        )
    if data is None:
        return 0
    if output is None:
        print(machine_text(data), end="")
        return 0
    write_text(output, machine_text(data))
    print(output)
    return 0
