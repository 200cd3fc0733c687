"""Seconds of each compiler stage for Step-3.5 stacks of several depths, in one run.

Layers beyond 45 repeat the real ones. Capture is that of two ranks in CPU seconds, by the recorder
and, for the depths of ``--export``, by torch.export. Each of the stages after it is the least of
several repetitions: the others measure what else the machine was doing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from compiler.capture import Capture, capture_ranks
from compiler.optimize import optimize_captured
from compiler.plan.planner_options import PlannerOptions
from models.step3p5 import entry

OURS = ("canonicalize", "plan", "rewrite", "check")


def captured(layers: int, world_size: int, how: str = "record") -> tuple[Capture, float]:
    """The capture of a stack on the meta device as two ranks, and its CPU seconds."""
    calls: list[tuple[Any, ...]] = []

    def model() -> torch.nn.Module:
        built, args = entry.prefill(layers=layers)
        calls.append(args)
        return built

    started = time.process_time()
    captures = capture_ranks(model, lambda: (calls[-1], {}), world_size, capture=how)
    return captures, time.process_time() - started


def measured(layers: int, world_size: int, repeats: int, export: bool) -> dict[str, Any]:
    """Seconds per stage, and what came out."""
    capture, seconds = captured(layers, world_size)
    runs = [optimize_captured(capture, PlannerOptions()) for _ in range(repeats)]
    result = runs[0]
    exported = captured(layers, world_size, "export")[1] if export else None
    return {
        "layers": layers,
        "values": len(capture.graph.graph.nodes),
        "all_reduces": [result.before.all_reduces, result.after.all_reduces],
        "verdict": str(result.verdict),
        "record": seconds,
        "export": exported,
        **{stage: min(run.seconds[stage] for run in runs) for stage in OURS},
    }


def main() -> int:
    """Prints a table on standard error and JSON on standard output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", default="6,45,180", help="depths; default: 6,45,180")
    parser.add_argument("--export", default="45", help="depths exported, too; default: 45")
    parser.add_argument("--world-size", type=int, default=8, help="ranks; default: 8")
    parser.add_argument("--repeats", type=int, default=3, help="of our stages; default: 3")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    console = Console(stderr=True)
    rows = []
    exported = [int(depth) for depth in arguments.export.split(",") if depth]
    for depth in map(int, arguments.layers.split(",")):
        with console.status(f"capturing and optimizing {depth} layers"):
            rows.append(measured(depth, arguments.world_size, arguments.repeats, depth in exported))
        console.print(f"{depth} layers: done")
    table = Table(title="seconds per stage", title_justify="left")
    for column in ("layers", "values", "all_reduces", "verdict", "record", "export", *OURS):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            str(row["layers"]), str(row["values"]), "{} -> {}".format(*row["all_reduces"]),
            row["verdict"], f"{row['record']:.2f}",
            "" if row["export"] is None else f"{row['export']:.1f}",
            *(f"{row[stage]:.3f}" for stage in OURS),
        )  # fmt: skip
    if len(rows) > 1:
        small, large = rows[-2], rows[-1]
        first, *ratios = [large[stage] / small[stage] for stage in ("record", *OURS)]
        table.add_section()
        table.add_row(
            f"{large['layers']} / {small['layers']}", "", "", "", f"{first:.2f}", "",
            *(f"{r:.2f}" for r in ratios),
        )  # fmt: skip
    console.print(table)
    print(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
