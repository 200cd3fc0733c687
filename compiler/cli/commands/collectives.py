"""``commplan collectives`` and ``commplan diff``: a model's collectives, and what changed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from compiler.cli.commands.lint import escaped
from compiler.cli.entry import ExitCode
from compiler.cli.inputs import options
from compiler.cli.inputs.files import read_text
from compiler.cli.inputs.load_model import load
from compiler.cli.inputs.options import InputOptions, bad_option
from compiler.cli.render.progress import Stages, stdout
from compiler.optimize.graph_api import optimize_spmd
from compiler.pipeline import Pipeline
from compiler.snapshot import Snapshot, changes, exceeded, rows

Format = StrEnum("Format", ["TEXT", "JSON", "GITHUB", "MARKDOWN"])
_format = "`text`, `json`: for `commplan diff`, `github`: annotations, `markdown`: a summary."
FormatOption = Annotated[Format, typer.Option(help=_format)]
_max = "Exit with 1 if there are more of a kind, such as `all_reduce=90`. Repeatable."
COLUMNS = ("layers", "each", "collective", "line")


def collectives(
    model: options.Model,
    tp: options.Tp = None,
    capture: options.Capture = "auto",
    settings: options.Settings = None,
    mesh: options.MeshText = "",
    groups: options.Groups = None,
    inputs: options.Inputs = None,
    optimized: Annotated[bool, typer.Option("--optimized", help="Of the optimized graph.")] = False,
    policy: options.PolicyOption = options.POLICY,
    most: Annotated[list[str] | None, typer.Option("--max", metavar="KIND=N", help=_max)] = None,
    format: FormatOption = Format.TEXT,
) -> int:
    """List the collectives of MODEL: kind, axis, operand on one rank, layers and line.

    Exit code 0: there they are. 1: more than `--max` allows. 3: there is no graph to look at.
    """
    budget = dict(map(_budget, most or ()))
    stages = Stages()
    graph = load(model, InputOptions(mesh, groups, inputs, tp, settings, capture), stages).graph
    if optimized:
        with stages.stage("optimize"):
            graph = optimize_spmd(
                graph, policy=policy, verify=True, tokens=None, pipeline=Pipeline()
            ).spmd
    snapshot = Snapshot.of(graph)
    over = exceeded(snapshot, budget)
    if format is Format.JSON:
        typer.echo(snapshot.to_json(), nl=False)
    elif format is Format.MARKDOWN:
        _print_markdown(COLUMNS, [tuple(map(str, row)) for row in rows(snapshot)])
    elif format is Format.TEXT:
        table = Table(*COLUMNS, box=SIMPLE)
        for row in rows(snapshot):
            table.add_row(*(Text(str(cell)) for cell in row))
        stdout().print(table)
    _announce([f"{model}: {text}" for text in over], format, err=True)
    return ExitCode.FINDINGS if over else ExitCode.OK


def diff(
    old: Annotated[str, typer.Argument(help="A list of `commplan collectives`, or as MODEL.")],
    new: Annotated[str, typer.Argument(help="What to hold against it, likewise.")],
    tp: options.Tp = None,
    capture: options.Capture = "auto",
    settings: options.Settings = None,
    format: FormatOption = Format.TEXT,
) -> int:
    """Say which collectives NEW has more and less than OLD, by layer and line of the model.

    Exit code 0: none. 1: some. 3: there is nothing to compare.
    """
    stages, input_options = Stages(), InputOptions("", None, None, tp, settings, capture)

    def snapshot(name: str) -> Snapshot:
        if name.endswith(".json"):
            return Snapshot.from_json(read_text(Path(name)), name)
        return Snapshot.of(load(name, input_options, stages).graph)

    before, after = snapshot(old), snapshot(new)
    found = changes(before, after)
    match format:
        case Format.JSON:
            typer.echo(json.dumps({"schema": "commplan.changes/1", "changes": found}, indent=1))
        case Format.MARKDOWN:
            _print_markdown(("collectives that changed",), [(text,) for text in found])
        case _:
            _announce(found, format, err=False)
    return ExitCode.FINDINGS if found else ExitCode.OK


def _announce(lines: Iterable[str], format: Format, *, err: bool) -> None:
    """Print lines, or annotations of GitHub, which reads them on standard output."""
    for line in lines:
        github = format is Format.GITHUB
        text = f"::error title=collectives::{escaped(line)}" if github else line
        typer.echo(text, err=err and not github)


def _print_markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    for cells in (heads, ["---"] * len(heads), *lines):
        typer.echo("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")


def _budget(text: str) -> tuple[str, int]:
    kind, _, number = text.partition("=")
    if not number.isdecimal():
        raise bad_option("--max", text, "give KIND=N, such as all_reduce=90")
    return kind, int(number)
