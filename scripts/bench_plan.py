"""What plans for Step-3.5 take on every machine, and how long planning takes.

Real config on the meta device; nothing runs. On each machine, planned <= merged <= as written is
asserted at every token count asked for, at both ends of every range, and on a geometric grid.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from compiler.capture import Capture
from compiler.cost import load_machine, machines
from compiler.cost.units import PS_PER_MS
from compiler.errors import CommPlanError
from compiler.garbage import collection_paused
from compiler.plan.planner import Planner
from compiler.plan.planner_options import PlannerOptions
from scripts.bench_compile import captured

LAST_TOKENS = 32768
GRID_RATIO = 1.3


def planned(capture: Capture, name: str, counts: list[int]) -> dict[str, Any]:
    """Ranges, totals at ``counts``, and seconds on one machine."""
    start = time.perf_counter()
    search = PlannerOptions(machine=load_machine(name))
    planner = Planner(capture.graph, search)
    middle = time.perf_counter()
    table = planner.table
    end = time.perf_counter()
    if planner.symbol is None:
        raise CommPlanError("no single size counts tokens", where=name)
    ends = [count for r in table.ranges() for count in (r.first, r.last)]
    grid = [round(GRID_RATIO**i) for i in range(40)]
    checked = sorted({n for n in (*counts, *ends, *grid) if 1 <= n <= LAST_TOKENS})
    totals = {n: planner.totals(table.plan(n), n) for n in checked}
    for n, t in totals.items():
        assert t.planned <= t.merged <= t.as_written, f"{name}, {n} tokens: {t}"
        assert t.bound is None or t.bound <= t.planned, f"{name}, {n} tokens: {t}"
    return {
        "machine": name,
        "canonicalize_s": middle - start,
        "ranges_s": end - middle,
        "breaks": [r.first for r in table.even[1:]],
        "breaks_uneven": [r.first for r in table.uneven[1:]],
        "checked": len(checked),
        "totals": {n: vars(totals[n]) for n in counts},
    }


def markdown(rows: list[dict[str, Any]], counts: list[int]) -> str:
    """Rows of milliseconds, as written → merged → planned."""
    heads = ["machine", *(f"{n:,}" for n in counts), "plans change at"]
    lines = [f"| {' | '.join(heads)} |", "| " + " | ".join("---" for _ in heads) + " |"]
    for row in rows:
        cells = []
        for n in counts:
            t = row["totals"][n]
            three = (t[k] / PS_PER_MS for k in ("as_written", "merged", "planned"))
            cells.append(" → ".join(f"{ms:.4g}" for ms in three))
        breaks = ", ".join(f"{n:,}" for n in row["breaks"]) or "never"
        lines.append(f"| {row['machine']} | {' | '.join(cells)} | {breaks} |")
    return "\n".join(lines)


def main() -> int:
    """Prints a table in Markdown, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=45, help="default: 45")
    parser.add_argument("--world-size", type=int, default=8, help="ranks; default: 8")
    parser.add_argument("--machines", default=",".join(machines()), help="default: all")
    parser.add_argument("--tokens", default="1,64,512,2048,8192,16384,32768")
    parser.add_argument("--format", choices=("markdown", "json"), default="markdown")
    parser.add_argument("--output", type=Path, help="also write JSON to this file")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    console, counts = Console(stderr=True), [int(n) for n in arguments.tokens.split(",")]
    with console.status(f"capturing {arguments.layers} layers"):
        capture, _ = captured(arguments.layers, arguments.world_size)
    rows = []
    try:
        for name in arguments.machines.split(","):
            with console.status(f"planning for {name}"), collection_paused():
                rows.append(planned(capture, name, counts))
            row = rows[-1]
            console.print(
                f"{name}: canonicalized in {row['canonicalize_s']:.2f} s, all ranges planned in "
                f"{row['ranges_s']:.2f} s; planned <= merged <= as written at {row['checked']} "
                "token counts"
            )
    except CommPlanError as error:
        console.print(f"error: {error}", markup=False)
        return 3
    if arguments.output:
        arguments.output.write_text(json.dumps(rows, indent=1))
    print(json.dumps(rows, indent=1) if arguments.format == "json" else markdown(rows, counts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
