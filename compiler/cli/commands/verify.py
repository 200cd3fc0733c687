"""``commplan verify``: does a tensor-parallel model compute what it computes on one device?"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

from compiler.check.single_device import check_single_device
from compiler.cli.entry import ExitCode
from compiler.cli.inputs import options
from compiler.cli.inputs.files import is_graph_file
from compiler.cli.inputs.load_model import load
from compiler.cli.inputs.options import InputOptions
from compiler.cli.render.progress import Stages, stdout
from compiler.cli.render.report import print_report, report_json

Format = StrEnum("Format", ["TEXT", "JSON"])
_single = "The model on one device, if it is another than MODEL with one rank."


def verify(
    model: options.Model,
    single: Annotated[str, typer.Argument(help=_single, show_default=False)] = "",
    tp: options.Tp = None,
    capture: options.Capture = "auto",
    settings: options.Settings = None,
    mesh: options.MeshText = "",
    groups: options.Groups = None,
    inputs: options.Inputs = None,
    format: Annotated[Format, typer.Option(help="How to print the report.")] = Format.TEXT,
) -> int:
    """Say whether MODEL on several ranks computes what SINGLE computes on one device.

    Parameters and arguments correspond by name. What ranks hold of each is what `--input` says,
    otherwise what the shapes of both models say; the report lists it. Exit code 0: yes. 1: no,
    with a counterexample. 2: not shown either way. 3: the models cannot be compared.
    """
    stages = Stages()
    parallel_options = InputOptions(mesh, groups, inputs, tp, settings, capture)
    parallel = load(model, parallel_options, stages)
    own = settings if single in ("", model) else None
    alone = InputOptions(tp=1, settings=own, capture=capture)
    name = single or model
    whole = load(name, InputOptions() if is_graph_file(name) else alone, stages)
    with stages.stage("verify"):
        report = check_single_device(
            whole.graph,
            parallel.graph,
            parallel_options.placements,
            (whole.constants, parallel.constants),
        )
    if format is Format.JSON:
        typer.echo(json.dumps(report_json(report), indent=1))
    else:
        print_report(stdout(), report)
    return ExitCode[report.verdict]
