"""``commplan collectives`` and ``commplan diff``: a model's collectives, and what changed."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from compiler.cli.commands.lint import escaped
from compiler.cli.entry import ExitCode
from compiler.cli.inputs.files import read_text
from compiler.cli.inputs.load_model import load
from compiler.cli.inputs.options import InputOptions, bad_option, is_count
from compiler.cli.render.progress import Stages, new_table, print_json, stdout
from compiler.optimize.graph_api import optimize_spmd
from compiler.pipeline import Pipeline
from compiler.snapshot import Snapshot, changes, exceeded, rows

COLUMNS = ("layers", "each", "collective", "line")


def collectives(
    model: str,
    options: InputOptions,
    *,
    optimized: bool,
    policy: str,
    widen: bool,
    most: Sequence[str],
    format: str,
) -> int:
    """List the collectives of a model: kind, axis, operand on one rank, layers and line."""
    budget = dict(map(_budget, most))
    stages = Stages()
    graph = load(model, options, stages).graph
    if optimized:
        with stages.stage("optimize"):
            graph = optimize_spmd(
                graph, policy=policy, verify=True, tokens=None, pipeline=Pipeline(), widen=widen
            ).spmd
    snapshot = Snapshot.of(graph)
    over = exceeded(snapshot, budget)
    if format == "json":
        print(snapshot.to_json(), end="")
    elif format == "markdown":
        _print_markdown(COLUMNS, [tuple(map(str, row)) for row in rows(snapshot)])
    elif format == "text":
        table = new_table(*COLUMNS)
        for row in rows(snapshot):
            table.add_row(*map(str, row))
        stdout().print(table)
    _announce([f"{model}: {text}" for text in over], format, err=True)
    return ExitCode.FINDINGS if over else ExitCode.OK


def diff(old: str, new: str, options: InputOptions, format: str) -> int:
    """Say which collectives ``new`` has more and less than ``old``, by layer and line."""
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
            _announce(differences, format, err=False)
    return ExitCode.FINDINGS if differences else ExitCode.OK


def _announce(lines: Iterable[str], format: str, *, err: bool) -> None:
    """Print lines, or annotations of GitHub, which reads them on standard output."""
    for line in lines:
        github = format == "github"
        text = f"::error title=collectives::{escaped(line)}" if github else line
        print(text, file=sys.stderr if err and not github else None)


def _print_markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    for cells in (heads, ["---"] * len(heads), *lines):
        print("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")


def _budget(text: str) -> tuple[str, int]:
    kind, _, number = text.partition("=")
    if not is_count(number, 0):
        raise bad_option("--max", text, "give KIND=N, such as all_reduce=90")
    return kind, int(number)
