"""``commplan check``: do two graphs compute the same function?"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

from compiler.check import check
from compiler.cli.inputs import options
from compiler.cli.inputs.files import Given, is_graph_file, read_graph, warn_undeclared
from compiler.cli.render.progress import Stages, stdout
from compiler.cli.render.verdicts import exit_code, print_report, report_json
from compiler.ir.graph import SpmdGraph


class Format(StrEnum):
    """How the report is printed."""

    TEXT = "text"
    JSON = "json"


def check_graphs(
    source: Annotated[str, typer.Argument(help="Graph file that says what is right.")],
    target: Annotated[str, typer.Argument(help="Graph file to hold against it.")],
    mesh: options.MeshText = "",
    groups: options.Groups = None,
    inputs: options.Inputs = None,
    format: Annotated[Format, typer.Option(help="How to print the report.")] = Format.TEXT,
) -> int:
    """Say whether TARGET computes the same function as SOURCE on every rank.

    Inputs correspond by position, parameters by name; placements are those of SOURCE. Exit code 0:
    yes. 1: no, with a counterexample. 2: not shown either way. 3: the files cannot be compared.
    """
    stages, given = Stages(), Given(mesh, tuple(groups or ()), tuple(inputs or ()))

    def read(name: str) -> SpmdGraph:
        # A text states its own mesh; the options are for programs, and wrong only if none is one.
        texts_only = not any(n.endswith(".pt2") for n in (source, target))
        with stages.stage("read", name):
            is_text = is_graph_file(name) and not name.endswith(".pt2")
            return read_graph(name, given if texts_only or not is_text else Given())

    graphs = read(source), read(target)
    warn_undeclared(graphs[0], given if source.endswith(".pt2") else Given())
    with stages.stage("check"):
        report = check(*graphs)
    if format is Format.JSON:
        typer.echo(json.dumps(report_json(report), indent=1))
    else:
        print_report(stdout(), report)
    return exit_code(report.verdict)
