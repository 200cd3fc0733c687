"""What a model takes on several machines and world sizes."""

from __future__ import annotations

import json
from collections.abc import Sequence

import typer
from rich.box import SIMPLE
from rich.table import Table

from compiler.cli.render.forecast import Plans, ms_text
from compiler.cli.render.progress import stdout
from compiler.cost import Machine, load_machine
from compiler.errors import CommPlanError


def compared(text: str) -> list[tuple[Machine, int | None]]:
    """Machines and world sizes of ``h200x8,l40sx8:4``.

    Raises:
        CommPlanError: no such machine, or no such number.
    """
    found = []
    for part in filter(None, text.split(",")):
        name, colon, ranks = part.partition(":")
        if colon and not (ranks.isdecimal() and int(ranks)):
            raise CommPlanError(
                "--compare names a world size that is none",
                found=repr(part),
                remedy="write NAME or NAME:RANKS, such as h200x8:4",
            )
        found.append((load_machine(name), int(ranks) if colon else None))
    return found


def print_comparison(every: Sequence[Plans], counts: Sequence[int], as_json: bool) -> None:
    """A row per machine and world size, a column per number of tokens."""
    rows = []
    for plans in every:
        machine, ranks = plans.planner.options.machine, plans.source.graph.mesh.size
        assert machine is not None, "times are those of a machine"
        totals = [plans.totals(count if plans.symbol else None) for count in counts]
        rows.append((machine, ranks, totals))
    if as_json:
        held = [
            {
                "machine": machine.name, "ranks": ranks,
                "predicted": [
                    {"tokens": count, "as_written": t.as_written, "merged": t.merged,
                     "planned": t.planned, "bound": t.bound}
                    for count, t in zip(counts, totals, strict=True)
                ],
            }
            for machine, ranks, totals in rows
        ]  # fmt: skip
        typer.echo(json.dumps(held, indent=1))
        return
    first = every[0]
    title = f"{first.source.name}: ms as written → merged → planned, saved of as written"
    table = Table(box=SIMPLE, title=title, title_justify="left")
    table.add_column("machine")
    table.add_column("ranks", justify="right")
    for count in counts:
        table.add_column(f"{count} token{'s' * (count != 1)}", justify="right", no_wrap=True)
    for machine, ranks, totals in rows:
        cells = []
        for t in totals:
            times = " → ".join(ms_text(x) for x in (t.as_written, t.merged, t.planned))
            cells.append(f"{times}  {1 - t.planned / max(1, t.as_written):.1%}")
        table.add_row(machine.name, str(ranks), *cells)
    stdout().print(table)
