"""Seeded mutants that the checker must not accept, and random graphs that it must not refuse.

1. Correct graphs (small Step-3.5, graphs made by hand, random graphs, all optimized) with one
   mistake each: a verdict that lets a mutant run, though it computes something else, is a failure.
   Whether it does is decided by simulating all ranks in float64.
2. Random graphs through random orders of passes: each must compute what its source computes, by
   the same simulation, and must be shown to.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from scripts.mutate import MUTATIONS, Outcome
from scripts.mutate.campaign import Finding, Tally, mutants, random_graphs
from scripts.mutate.pairs import model_texts

BATCH = 100
"""Mutants, or random graphs, of one task."""

SHOWN = (Outcome.NOT_EQUIVALENT, Outcome.UNPROVED, Outcome.INVALID)

progress_console = Console(stderr=True)


def quiet() -> None:
    """What every process does first."""
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)  # torch logs every op that a mutant makes impossible
    torch.set_num_threads(1)


def batches(total: int) -> list[int]:
    """Sizes of the tasks that make up ``total``."""
    return [min(BATCH, total - i) for i in range(0, total, BATCH)]


def run(title: str, pool: ProcessPoolExecutor, tasks: Iterable[tuple[Any, ...]]) -> Tally:
    """Run tasks in parallel and add up what they found."""
    total, started = Tally(), time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               TimeElapsedColumn())  # fmt: skip
    futures: list[Future[Tally]] = [pool.submit(*task) for task in tasks]
    with Progress(*columns, console=progress_console) as shown:
        bar = shown.add_task(title, total=len(futures))
        for future in as_completed(futures):
            tally = future.result()
            total.add(tally)
            for finding in tally.findings:
                shown.console.print(f"{finding.title}\n  {finding.explanation}", markup=False)
            shown.advance(bar)
    progress_console.print(f"{title}: {time.perf_counter() - started:.0f} s", markup=False)
    return total


def save(findings: Iterable[Finding], folder: Path) -> None:
    """Write what must not be to one folder each."""
    for number, finding in enumerate(findings):
        place = folder / f"{number:03}"
        place.mkdir(parents=True, exist_ok=True)
        (place / "finding.txt").write_text(f"{finding.title}\n{finding.explanation}\n")
        for role, text in finding.graphs.items():
            (place / f"{role}.spmd").write_text(text)


def mutant_rows(tally: Tally) -> list[dict[str, Any]]:
    """Counts by kind of mistake, and of all."""
    rows = []
    for name in (*MUTATIONS, "all"):
        matching = Counter[str]()
        for (what, how), n in tally.counts.items():
            matching[how] += n * (name in (what, "all"))
        found = {str(outcome): matching[outcome] for outcome in Outcome}
        rows.append(
            {"mutation": name, "mutants": sum(found.values()) - found[Outcome.EQUAL], **found,
             "proved equal": matching["proved equal"]}
        )  # fmt: skip
    return rows


def mutant_table(rows: list[dict[str, Any]]) -> Table:
    """Shares of the verdicts by kind of mistake."""
    table = Table(title="mutants", title_justify="left")
    for column in ("mutation", "mutants", *map(str, SHOWN), "wrongly accepted", "wrongly refuted",
                   "equal function", "of these proved"):  # fmt: skip
        table.add_column(column, justify="left" if column == "mutation" else "right")
    for row in rows:
        if row["mutation"] == "all":
            table.add_section()
        share = [f"{100 * row[str(o)] / max(row['mutants'], 1):.1f} %" for o in SHOWN]
        table.add_row(
            row["mutation"].replace("_", " "), str(row["mutants"]), *share,
            str(row[Outcome.ACCEPTED]), str(row[Outcome.REFUTED]), str(row[Outcome.EQUAL]),
            str(row["proved equal"]),
        )  # fmt: skip
    return table


def graph_table(tally: Tally) -> Table:
    """What became of the random graphs."""
    table = Table(title="random graphs through random orders of passes", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    for (what, how), count in sorted(tally.counts.items()):
        table.add_row(f"{what}: {how}", f"{count:,}")
    return table


def main() -> int:
    """Prints tables (or JSON) on standard output; 1 if there is a finding."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=10_000, help="default: 10000")
    parser.add_argument("--graphs", type=int, default=10_000, help="default: 10000")
    parser.add_argument("--seed", type=int, default=0, help="of all draws; default: 0")
    parser.add_argument("--workers", type=int, default=2, help="processes; default: 2")
    parser.add_argument("--without-models", action="store_true", help="no Step-3.5 among the pairs")
    parser.add_argument("--output", type=Path, default=Path("out/bench_checker"),
                        help="where findings are written; default: out/bench_checker")  # fmt: skip
    parser.add_argument("--format", choices=("table", "json"), default="table")
    given = parser.parse_args()
    quiet()
    texts: dict[str, str] = {}
    if given.mutants and not given.without_models:
        with progress_console.status("capturing small Step-3.5 models"):
            texts = model_texts()
    spawn = get_context("spawn")
    with ProcessPoolExecutor(given.workers, mp_context=spawn, initializer=quiet) as pool:
        base = given.seed << 32
        first = run(
            "mutants", pool,
            ((mutants, base + i, size, texts) for i, size in enumerate(batches(given.mutants))),
        )  # fmt: skip
        second = run(
            "random graphs", pool,
            ((random_graphs, base + i * BATCH, size)
             for i, size in enumerate(batches(given.graphs))),
        )  # fmt: skip
    findings = [*first.findings, *second.findings]
    save(findings, given.output)
    report(given, first, second, findings)
    return 1 if findings else 0


def report(given: argparse.Namespace, first: Tally, second: Tally, findings: list[Finding]) -> None:
    """Print what was counted."""
    rows = mutant_rows(first)
    rates = {
        "mutants": 1000 * first.seconds / max(rows[-1]["mutants"], 1),
        "graphs": 1000 * second.seconds / max(given.graphs, 1),
    }
    if given.format == "json":
        graphs = {f"{what}: {how}": n for (what, how), n in sorted(second.counts.items())}
        summary = {
            "seed": given.seed, "mutants": rows, "graphs": graphs,
            "processor_seconds_per_1000": rates, "findings": [f.title for f in findings],
        }  # fmt: skip
        print(json.dumps(summary, indent=1))
        return
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(mutant_table(rows))
    console.print(graph_table(second))
    for name, seconds in rates.items():
        console.print(f"{seconds:.1f} s of processor time per 1,000 {name}")
    console.print(f"{len(findings)} findings" + (f", in {given.output}" if findings else ""))


if __name__ == "__main__":
    sys.exit(main())
