"""``commplan collectives`` and ``commplan diff``: a model's collectives, and what changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from compiler.cli.commands.lint import escaped
from compiler.cli.entry import ExitCode
from compiler.cli.inputs.files import read_text
from compiler.cli.inputs.load_model import load
from compiler.cli.inputs.options import InputOptions, bad_option, distinct, is_count
from compiler.cli.render.progress import Stages, new_table, print_json, say, stdout
from compiler.optimize.optimizer import optimize
from compiler.plan.planner import Planner
from compiler.plan.planner_options import PlannerOptions
from compiler.snapshot import Snapshot, changes, exceeded, rows

COLUMNS = ("layers", "each", "collective", "line")


def collectives(
    model: str,
    options: InputOptions,
    optimized: bool,
    policy: str,
    most: Sequence[str],
    format: str,
) -> int:
    """List the collectives of a model."""
    budget = dict(map(_budget, distinct("--max", most)))
    stages = Stages()
    graph = load(model, options, stages).graph
    if optimized:
        with stages.stage("optimize"):
            planner = Planner(graph, PlannerOptions(policy))
            graph = optimize(planner, planner.decide(None)).spmd
    snapshot = Snapshot.of(graph)
    over = exceeded(snapshot, budget)
    match format:
        case "json":
            print(snapshot.to_json(), end="")
        case "markdown":
            _print_markdown(COLUMNS, [tuple(map(str, row)) for row in rows(snapshot)])
        case "text":
            table = new_table(*COLUMNS)
            for row in rows(snapshot):
                table.add_row(*map(str, row))
            stdout().print(table)
    for text in over:
        line = f"{model}: {text}"
        print(annotation(line)) if format == "github" else say(line)
    return ExitCode.FINDINGS if over else ExitCode.OK


def diff(old: str, new: str, options: InputOptions, format: str) -> int:
    """Say which collectives one graph has more and less than another."""
    stages = Stages()

    def snapshot(name: str) -> Snapshot:
        if name.endswith(".json"):
            return Snapshot.from_json(read_text(Path(name)), name)
        return Snapshot.of(load(name, options, stages).graph)

    before, after = snapshot(old), snapshot(new)
    differences = changes(before, after)
    match format:
        case "json":
            print_json({"schema": "commplan.changes/1", "changes": differences})
        case "markdown":
            _print_markdown(("collectives that changed",), [(text,) for text in differences])
        case _:
            for line in differences:
                print(annotation(line) if format == "github" else line)
    return ExitCode.FINDINGS if differences else ExitCode.OK


def annotation(line: str) -> str:
    """Return an annotation as GitHub reads it."""
    return f"::error title=collectives::{escaped(line)}"


def _print_markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    for cells in (heads, ["---"] * len(heads), *lines):
        print("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")


def _budget(text: str) -> tuple[str, int]:
    kind, _, number = text.partition("=")
    if not is_count(number, 0):
        raise bad_option("--max", text, "give KIND=N, such as all_reduce=90")
    return kind, int(number)
