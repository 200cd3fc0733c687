"""``commplan machine``: times of collectives and kernels on machines, shipped, fitted, measured."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table as Printed
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
from compiler.cli.inputs.files import write_text
from compiler.cli.render.collectives import bytes_text
from compiler.cli.render.progress import Stages, print_json, stdout
from compiler.cost import Machine, load_machine, machines
from compiler.cost.machine_files import FOLDER, parse_machine, read_json
from compiler.cost.tables import Quantity, Table

MAX_BYTES, MAX_BYTES_CPU = 1 << 28, 1 << 22


def list_machines(format: str) -> int:
    """List the machines that come with the package."""
    every = {m: sorted({table.ranks for table in m.tables}) for m in map(load_machine, machines())}
    if format == "json":
        rows = [{"name": m.name, "title": m.title, "ranks": ranks} for m, ranks in every.items()]
        print_json(rows)
        return 0
    table = Printed("name", "", "tables of ranks", "memory TB/s", "bf16 TFLOP/s", box=SIMPLE)
    for m, ranks in every.items():
        rates = m.memory_bytes_per_us / 1e6, m.matmul_flop_per_us(torch.bfloat16) / 1e6
        table.add_row(
            m.name, m.title, ", ".join(map(str, ranks)), f"{rates[0]:.2f}", f"{rates[1]:.0f}"
        )
    stdout().print(table)
    return 0


def show(name: str, ranks: int | None, format: str) -> int:
    """Show a machine's numbers with their sources."""
    one = load_machine(name)
    tables = [table for table in one.tables if ranks in (None, table.ranks)]
    if format == "json":
        print_json(machine_json(one, tables))
    else:
        print_machine(stdout(), one, tables)
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


def print_machine(console: Console, one: Machine, tables: Sequence[Table]) -> None:
    """Print the numbers, then the regimes of every table, then where the tables come from."""
    console.print(Text.assemble((one.name, "bold"), f"  {one.title}"))
    numbers = Printed("", "", "", "source", box=SIMPLE)
    for name, number in quantities(one).items():
        numbers.add_row(name, f"{number.value:,}", number.unit, number.source)
    console.print(numbers)
    sources = list(dict.fromkeys(table.source for table in tables))
    regimes = Printed(
        "", "ranks", "library", "launch", "from", "alpha us", "GB/s", "median", "max", "source",
        box=SIMPLE,
    )  # fmt: skip
    for table in tables:
        left = [str(table.kind), str(table.ranks), table.library, ", ".join(table.launches)]
        right = [percent(table.median_error), percent(table.maximum_error)]
        right.append(str(sources.index(table.source) + 1))
        for regime in table.curve.regimes:
            rate = f"{1e6 / regime.beta_fs_per_byte:.1f}" if regime.beta_fs_per_byte else "-"
            line = [bytes_text(regime.from_bytes), f"{regime.alpha_ps / 1e6:.2f}", rate]
            regimes.add_row(*left, *line, *right)
            left, right = [""] * len(left), [""] * len(right)
    console.print(regimes)
    lines = [f"{i}: {source}" for i, source in enumerate(sources, 1)]
    if one.network is not None:
        lines += [
            f"network, {p.name}: {p.base_ps / 1e6:.1f} us + {p.step_ps / 1e6:.1f} us a step, "
            f"{p.bytes_per_us / 1e3:.0f} GB/s"
            for p in one.network.protocols
        ]
        lines.append(one.network.source)
    for text in lines:
        console.print(text)


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
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / f"{data['name']}.json", machine_text(data))
    if format == "json":
        print_json(errors_json(fitted))
    else:
        print_errors(stdout(), fitted)
        print_unused(stdout(), rows, fitted)
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


def print_errors(console: Console, fitted: dict[str, tuple[FittedTable, ...]]) -> None:
    """Print a row per table: errors of the model, and of the table against itself."""
    table = Printed(
        "machine", "", "ranks", "library", "launch", "rows", "regimes", "median",
        "max > 1 MiB", "interpolated: median", "max > 1 MiB", "max, any size", box=SIMPLE,
    )  # fmt: skip
    missed = []
    for name, tables in fitted.items():
        for one in tables:
            m, e, y = one.measured, one.fit.errors, one.fit.yardstick
            table.add_row(
                name, m.kind, str(m.ranks), m.library, ", ".join(m.launches), str(len(m.points)),
                str(len(one.fit.curve.regimes)), percent(e.median), percent(e.maximum_above_1mib),
                percent(y.median), percent(y.maximum_above_1mib), percent(e.maximum),
            )  # fmt: skip
            name = ""
            if not e.meets_targets:
                missed.append(one)
        table.add_section()
    console.print(table)
    total = sum(map(len, fitted.values()))
    console.print(
        f"{total - len(missed)} of {total} tables within {percent(MEDIAN_TARGET)} median and "
        f"{percent(MAXIMUM_TARGET)} above 1 MiB",
    )
    for one in missed:
        console.print(missed_text(one), soft_wrap=True)


def missed_text(one: FittedTable) -> str:
    """Return why a table misses a target: its worst row, and rows no monotone model can meet."""
    m, worst = one.measured, one.fit.errors.worst_bytes
    at = [payload for payload, _ in m.points].index(worst)
    around = ", ".join(f"{bytes_text(b)} {t:g} us" for b, t in m.points[max(at - 1, 0) : at + 2])
    falls = ", ".join(
        f"{bytes_text(b)} takes {share:.2f} of the row before" for b, share in one.fit.falls
    )
    return (
        f"missed: {m.gpu} {m.kind} {m.ranks} ranks {m.library} {', '.join(m.launches)}: "
        f"worst at {bytes_text(worst)} ({around}){'; ' * bool(falls)}{falls}"
    )


def print_unused(
    console: Console, rows: Sequence[Measurements], fitted: dict[str, tuple[FittedTable, ...]]
) -> None:
    """Print which tables no machine has: older versions, and GPUs without a machine."""
    used = {one.measured for tables in fitted.values() for one in tables}
    _, older = newest(rows)
    for title, left in (
        ("older versions", older),
        ("no machine", [one for one in rows if one not in used and one not in older]),
    ):
        names = dict.fromkeys(f"{one.gpu} {one.library}" for one in left)
        if left:
            count = sum(len(one.points) for one in left)
            console.print(
                f"not used, {title}: {len(left)} tables, {count} rows: {', '.join(names)}",
                soft_wrap=True,
            )


def measure(name: str, min_bytes: int, max_bytes: int | None, output: Path | None) -> int:
    """Measure this machine and write its file."""

    def sizes(device: torch.device) -> list[int]:
        largest = max_bytes or (MAX_BYTES if device.type == "cuda" else MAX_BYTES_CPU)
        return [min_bytes << i for i in range((largest // min_bytes).bit_length())]

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
