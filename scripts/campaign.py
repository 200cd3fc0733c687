"""Run what takes too long for every change, part by part, and print one table of the results.

A finding is anything that must not be: a mutant that the checker accepts, a random graph that it
refuses, a test that fails, a family that computes other tokens. Each is written to a folder with
all that reproduces it, and the exit code is 1 if there is one.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from scripts.mutate import MUTATIONS, Outcome
from scripts.mutate import campaign as batch
from scripts.mutate.campaign import Finding, Tally
from scripts.mutate.pairs import model_texts

BATCH = 100
"""Mutants, or random graphs, of one task."""
ROOT = Path(__file__).parents[1]

console = Console(stderr=True)


@dataclass(frozen=True)
class Result:
    """What became of a part.

    Attributes:
        count: mutants, graphs, tests or models that were run.
        findings: what must not be.
        figures: what else was counted, for JSON.
    """

    count: int
    findings: Sequence[Finding]
    figures: Mapping[str, Any] = field(default_factory=dict)


# ---- mutants and random graphs


def quieten() -> None:
    """Silence warnings and torch's log, in every process."""
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)  # torch logs every op that a mutant makes impossible
    torch.set_num_threads(1)


def processes(workers: int) -> Executor:
    """Return a pool of so many new processes."""
    spawn = get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=spawn, initializer=quieten)


def batches(total: int) -> list[int]:
    """Return the sizes of the tasks that make up ``total``."""
    return [min(BATCH, total - i) for i in range(0, total, BATCH)]


def added_up(title: str, workers: int, tasks: Iterable[tuple[Any, ...]]) -> Tally:
    """Run tasks in parallel and add up their tallies."""
    total = Tally()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               TimeElapsedColumn())  # fmt: skip
    with processes(workers) as pool, Progress(*columns, console=console) as progress:
        futures: list[Future[Tally]] = [pool.submit(*task) for task in tasks]
        bar = progress.add_task(title, total=len(futures))
        for future in as_completed(futures):
            tally = future.result()
            total.add(tally)
            for finding in tally.findings:
                progress.console.print(f"{finding.title}\n  {finding.explanation}", markup=False)
            progress.advance(bar)
    return total


def mutants(options: argparse.Namespace) -> Result:
    """Break correct rewrites, in turn of every kind."""
    with console.status("capturing small Step-3.5 models"):
        texts = {} if options.without_models else model_texts()
    sizes = enumerate(batches(options.mutants), options.seed << 32)
    tasks = ((batch.mutants, seed, size, texts) for seed, size in sizes)
    tally = added_up("mutants", options.workers, tasks)
    rows = mutant_rows(tally)
    figures = {"by mutation": rows, "processor seconds": tally.seconds}
    return Result(rows[-1]["mutants"], tally.findings, figures)


def mutant_rows(tally: Tally) -> list[dict[str, Any]]:
    """Return the counts by kind of mistake, and of all."""
    rows = []
    for name in (*MUTATIONS, "all"):
        matching = Counter[str]()
        for (what, how), n in tally.counts.items():
            matching[how] += n * (name in (what, "all"))
        counts = {str(outcome): matching[outcome] for outcome in Outcome}
        rows.append(
            {"mutation": name, "mutants": sum(counts.values()) - counts[Outcome.EQUAL], **counts,
             "proved equal": matching["proved equal"]}
        )  # fmt: skip
    return rows


def from_seeds(run: Callable[[int, int], Tally], options: argparse.Namespace) -> Iterable[Any]:
    """Return tasks for as many random graphs as ``options`` say."""
    first = options.seed << 32
    return ((run, first + i * BATCH, n) for i, n in enumerate(batches(options.graphs)))


def by_hand(options: argparse.Namespace) -> Result:
    """Check rewrites that people make; those that are not proved are counted."""
    tally = added_up("by hand", options.workers, from_seeds(batch.rewritten_by_hand, options))
    counts = {f"{form}: {verdict}": n for (form, verdict), n in sorted(tally.counts.items())}
    unproved = sum(n for (_, verdict), n in tally.counts.items() if verdict == "UNPROVED")
    figures = {"unproved": unproved, "counts": counts, "processor seconds": tally.seconds}
    return Result(sum(tally.counts.values()), tally.findings, figures)


def random_graphs(options: argparse.Namespace) -> Result:
    """Optimize random graphs through random orders of passes."""
    tally = added_up("random graphs", options.workers, from_seeds(batch.random_graphs, options))
    counts = {f"{what}: {how}": n for (what, how), n in sorted(tally.counts.items())}
    count = sum(n for (what, _), n in tally.counts.items() if what == "graphs")
    return Result(count, tally.findings, {"counts": counts, "processor seconds": tally.seconds})


# ---- tests


def all_seeds(options: argparse.Namespace) -> Result:
    """Run the test files that draw cases: brute force and random graphs."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    chosen = [path for path in files if "import share" in path.read_text()]
    return tested(options, *map(str, chosen), "-m", "not campaign")


def benchmarks(options: argparse.Namespace) -> Result:
    """Run the tests that scripts/test leaves out."""
    return tested(options, str(ROOT / "tests"), "-m", "campaign")


def tested(options: argparse.Namespace, *arguments: str) -> Result:
    """Run pytest, its progress on standard error; a finding for each test that fails."""
    command = [sys.executable, "-m", "pytest", "--numprocesses", str(options.workers)]
    command += ["--dist", "loadgroup", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "COMMPLAN_CAMPAIGN": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        ran = subprocess.run(
            [*command, f"--junitxml={report}"], cwd=ROOT, env=environment, stdout=sys.stderr
        )
        cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    findings = [
        Finding(f"{case.get('classname')}::{case.get('name')}", problem.text or "", {})
        for case in cases
        for problem in (*case.iter("failure"), *case.iter("error"))
    ]
    if ran.returncode and not findings:
        findings.append(Finding("pytest", f"exit code {ran.returncode}", {}))
    skipped = sum(1 for case in cases if case.find("skipped") is not None)
    return Result(len(cases) - skipped, findings, {"skipped": skipped})


# ---- families


def families(options: argparse.Namespace) -> Result:
    """Run every family, as transformers loads it, behind both doors on two gloo ranks."""
    from scripts import bench_families
    from tests.families.families import FAMILIES
    from tests.support.gloo import GlooPool

    runs = [(name, door) for name in FAMILIES for door in ("optimize", "compile")]
    outcomes = {}
    with tempfile.TemporaryDirectory(prefix="families-") as folder:
        bench_families.save(FAMILIES, Path(folder))
        pool = GlooPool(2, bench_families.TIMEOUT_S)
        for i, (name, door) in enumerate(runs):
            with console.status(f"{i} of {len(runs)}: {name}, {door}"):
                outcomes[f"{name}, {door}"] = bench_families.measured(
                    "family", name, door, folder, pool
                )
        pool.stop()
    findings = [
        Finding(title, json.dumps(asdict(outcome), indent=1), {})
        for title, outcome in outcomes.items()
        if bench_families.wrong(outcome)
    ]
    return Result(len(runs), findings, {title: asdict(o) for title, o in outcomes.items()})


# ---- the table

Part = Callable[[argparse.Namespace], Result]

PARTS: Mapping[str, tuple[Part, str]] = {
    "mutants": (mutants, "correct rewrites with one mistake each: none may be accepted"),
    "random-graphs": (random_graphs, "through random orders of passes: none may be refused"),
    "by-hand": (by_hand, "collectives in chunks, buckets, by others: none may be refuted"),
    "all-seeds": (all_seeds, "tests that draw cases, with all seeds"),
    "benchmarks": (benchmarks, "benchmarks run whole at small sizes, and slow variants of tests"),
    "families": (families, "transformers' models behind both doors, on two ranks"),
}


def main() -> int:
    """Print the table on standard output; return 1 if there is a finding."""
    options = _arguments()
    if options.list:
        print("\n".join(f"{name:15}{what}" for name, (_, what) in PARTS.items()))
        return 0
    quieten()
    table = Table(*("part", "what"), title="campaign", title_justify="left")
    for column in ("count", "findings", "seconds"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    total = 0
    for name in options.parts or PARTS:
        part, what = PARTS[name]
        console.print(f"== {name}: {what}", markup=False)
        started = time.perf_counter()
        result = _run(part, options)
        seconds = time.perf_counter() - started
        save(result, options.output / name)
        verdict = "FAILED" if result.findings else "ok"
        numbers = (result.count, len(result.findings), round(seconds))
        table.add_row(name, what, *(f"{n:,}" for n in numbers), verdict)
        total += len(result.findings)
    out = Console(width=None if sys.stdout.isatty() else 150)
    out.print(table)
    out.print(f"findings and figures: {options.output}", highlight=False, soft_wrap=True)
    return int(total > 0)


def _run(part: Part, options: argparse.Namespace) -> Result:
    """Run a part: the others run too if it crashes, or finds nothing to run."""
    try:
        result = part(options)
    except Exception:
        console.print_exception()
        return Result(0, [Finding("crashed", traceback.format_exc(), {})])
    if not result.count and not result.findings:
        return Result(0, [Finding("nothing ran", "", {})], result.figures)
    return result


def save(result: Result, folder: Path) -> None:
    """Write the figures, and each finding to a folder of its own, in place of earlier ones."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "figures.json").write_text(json.dumps(result.figures, indent=1))
    for number, finding in enumerate(result.findings):
        place = folder / f"{number:03}"
        place.mkdir()
        (place / "finding.txt").write_text(f"{finding.title}\n{finding.explanation}\n")
        for role, text in finding.graphs.items():
            (place / f"{role}.spmd").write_text(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all")
    parser.add_argument("--list", action="store_true", help="name the parts, and run nothing")
    parser.add_argument("--mutants", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--graphs", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of mutants and graphs; default: 0")
    parser.add_argument("--workers", type=int, default=2, help="processes; default: 2")
    parser.add_argument("--without-models", action="store_true", help="no mutants of Step-3.5")
    parser.add_argument("--output", type=Path, default=Path("out/campaign"),
                        help="folder of findings and figures; default: %(default)s")  # fmt: skip
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
