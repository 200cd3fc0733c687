"""The main job, shown: the real Step-3.5 config planned without weights, a small one run for real.

1. 45 layers, 288 experts, TP 8 on the meta device: captured, planned, rewritten, proven.
2. The same optimizer on a small Step-3.5 with random weights, run by four gloo processes
   before and after: outputs, collectives counted as they run, wall time as a ratio.
3. A GLM4-MoE of transformers as ``from_pretrained(folder, tp_plan="auto")`` loads it, by two gloo
   processes through ``optimize_allreduce`` and ``torch.compile``: logits, and tokens it generates.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from compiler.capture import capture_ranks
from compiler.optimize import ModelReport, optimize_captured
from compiler.plan.planner_options import PlannerOptions
from models.step3p5 import entry
from scripts.ranks import Run, run_small

console = Console()


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Shows a spinner and the time spent, on standard error."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    progress = Console(stderr=True)
    if not progress.is_terminal:
        progress.print(f"{name} …")
    with Progress(*columns, console=progress, transient=True) as shown:
        shown.add_task(name, total=None)
        yield


def real_size(layers: int | None, experts: str, world_size: int) -> ModelReport:
    """Plans and proves the real config on the meta device."""
    models: dict[str, Any] = {}

    def factory() -> torch.nn.Module:
        models["model"], models["args"], *_ = entry.prefill(experts=experts, layers=layers)
        return models["model"]

    with stage(f"capturing {layers or 45} layers as two of {world_size} ranks"):
        captured = capture_ranks(factory, lambda: (models["args"], {}), world_size)
    with stage("planning, rewriting, proving"):
        report = optimize_captured(captured, PlannerOptions(), config=models["model"].config)
    return report


def show_report(title: str, report: ModelReport) -> None:
    """The table by kind of layer, the verdict, and the seconds of each stage."""
    table = Table(title=title, title_justify="left")
    for column in ("", "layers", "all_reduce before", "after", "other collectives"):
        table.add_column(column, justify="left" if not column else "right")
    for kind, (count, before, after) in report.by_layer_kind().items():
        other = sum(after.values()) - after["all_reduce"]
        table.add_row(
            kind, str(count or ""), str(before["all_reduce"]), str(after["all_reduce"]), str(other)
        )
    inside = [counts for kind, counts in report.by_layer_kind().items() if counts[0]]
    table.add_section()
    table.add_row(
        "decoder layers",
        str(sum(count for count, *_ in inside)),
        str(sum(before["all_reduce"] for _, before, _ in inside)),
        str(sum(after["all_reduce"] for *_, after in inside)),
        "",
    )
    table.add_row("all", "", str(report.before.all_reduces), str(report.after.all_reduces), "")
    console.print(table)
    assert report.check is not None, "the demo verifies"
    console.print(f"[bold]{report.verdict}[/]: {report.check.explanation}")
    console.print(
        f"{len(report.check.roundings)} all_reduces take sums the author reduced one by one"
    )
    seconds = "   ".join(f"{name} {s:.2f} s" for name, s in (report.seconds or {}).items())
    console.print(f"seconds: {seconds}\n")


def show_runs(title: str, runs: list[Run]) -> bool:
    """The table of real runs; whether all outputs agree."""
    table = Table(title=title, title_justify="left")
    for column in (
        "experts", "call", "all_reduce run before", "after", "after / before time",
        "max difference / rms", "against one process",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for run in runs:
        table.add_row(
            run.experts, run.call, str(run.all_reduces_before), str(run.all_reduces_after),
            f"{run.time_ratio:.2f}", f"{run.difference:.1e}", f"{run.difference_to_dense:.1e}",
        )  # fmt: skip
    console.print(table)
    return all(max(run.difference, run.difference_to_dense) <= 5e-5 for run in runs)


def loaded_by_transformers(family: str, ranks: int) -> bool:
    """The table of a model of transformers behind both doors; whether tokens and logits agree."""
    if missing := [name for name in ("transformers", "accelerate") if not find_spec(name)]:
        console.print(f"{' and '.join(missing)} not installed: no model of transformers is run")
        return True
    # Imported here, as they need transformers.
    from scripts.bench_families import COLUMNS, measured, rows, wrong
    from tests.families.families import FAMILIES
    from tests.support.gloo import GlooPool

    shown = ("door", "all_reduces a call", "of dynamic generate", "logits fp32", "tokens",
             "first result, s (CPU)")  # fmt: skip
    title = f'Small {family} of transformers, tp_plan="auto", {ranks} gloo processes'
    table = Table(*shown, title=title, title_justify="left")
    pool, outcomes = GlooPool(ranks), []
    with tempfile.TemporaryDirectory() as folder:
        FAMILIES[family].save(Path(folder) / family)
        for door in ("optimize", "compile"):
            with stage(f"running a small {family} of transformers, {door}"):
                outcome = measured("family", family, door, folder, pool, ("fp32",), ("dynamic",))
            outcomes.append(outcome)
            cells = dict(zip(COLUMNS, rows(family, ranks, door, outcome)[0], strict=True))
            table.add_row(*(cells[column] for column in shown))
    pool.stop()
    console.print(table)
    for error in dict.fromkeys(error for outcome in outcomes for error in outcome.errors.values()):
        console.print(f"[bold]failed[/]: {error}")
    console.print("optimize: optimize_allreduce(model); compile: torch.compile(backend='commplan')")
    return not any(map(wrong, outcomes))


def main() -> int:
    """Runs all parts; 1 if an output differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, help="decoder layers of part 1; default: all 45")
    parser.add_argument("--world-size", type=int, default=8, help="ranks of part 1; default: 8")
    parser.add_argument("--rounds", type=int, default=7, help="timing rounds of part 2; default: 7")
    arguments = parser.parse_args()
    start = time.perf_counter()
    report = real_size(arguments.layers, "tp", arguments.world_size)
    show_report(
        f"Step-3.5-Flash, real size, TP {arguments.world_size}, no weights, symbolic token count",
        report,
    )
    runs = []
    for experts in ("tp", "ep"):
        with stage(f"running a small Step-3.5 on 4 gloo ranks, experts by {experts}"):
            runs += run_small(experts, ranks=4, rounds=arguments.rounds)
    agree = show_runs("Small Step-3.5, random fp32 weights, 4 gloo processes", runs)
    merged = all(run.all_reduces_after < run.all_reduces_before for run in runs)
    agree &= loaded_by_transformers("GLM4-MoE", ranks=2)
    console.print(
        f"outputs {'agree' if agree else 'DIFFER'}; "
        f"{time.perf_counter() - start:.0f} s in all; times on CPUs say nothing about GPUs"
    )
    return 0 if agree and merged and report.verdict.runs else 1


if __name__ == "__main__":
    sys.exit(main())
