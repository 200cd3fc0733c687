"""``commplan check``: do two graphs compute the same function?"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

from compiler.check import check
from compiler.cli.entry import ExitCode
from compiler.cli.inputs import options
from compiler.cli.inputs.files import PROGRAM, read_graph, warn_undeclared
from compiler.cli.inputs.options import InputOptions
from compiler.cli.render.progress import Stages, stdout
from compiler.cli.render.report import print_report, report_json
from compiler.ir.graph import SpmdGraph

Format = StrEnum("Format", ["TEXT", "JSON"])


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
    stages, input_options = Stages(), InputOptions(mesh, groups, inputs)

    def options_of(name: str) -> InputOptions:
        # A text states its own mesh; the options are for programs, and wrong only if none is one.
        programs = [one for one in (source, target) if one.endswith(PROGRAM)]
        return InputOptions() if programs and name not in programs else input_options

    def read(name: str) -> SpmdGraph:
        with stages.stage("read", name):
            return read_graph(name, options_of(name))

    graphs = read(source), read(target)
    warn_undeclared(graphs[0], options_of(source))
    with stages.stage("check"):
        report = check(*graphs)
    if format is Format.JSON:
        typer.echo(json.dumps(report_json(report), indent=1))
    else:
        print_report(stdout(), report)
    return ExitCode[report.verdict]
