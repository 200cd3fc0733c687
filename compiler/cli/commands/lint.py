"""``commplan lint``: are the reductions of a model right?"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from compiler.cli.entry import ExitCode
from compiler.cli.inputs import options
from compiler.cli.inputs.files import is_graph_file
from compiler.cli.inputs.load_model import load
from compiler.cli.inputs.options import InputOptions
from compiler.cli.render.progress import Stages
from compiler.errors import DivergenceError
from compiler.linter import Finding, findings
from compiler.linter.api import divergence

Format = StrEnum("Format", ["TEXT", "JSON", "GITHUB"])


def lint(
    model: options.Model,
    tp: options.Tp = None,
    capture: options.Capture = "auto",
    settings: options.Settings = None,
    mesh: options.MeshText = "",
    groups: options.Groups = None,
    inputs: options.Inputs = None,
    format: Annotated[
        Format,
        typer.Option(help="`text`, `json`, or `github`: annotations of a workflow's files."),
    ] = Format.TEXT,
) -> int:
    """Find wrong reductions in MODEL: double, missing, over the wrong ranks, of the wrong terms.

    Partial sums are known by the placements that the model declares for its parameters, or that
    `--input` gives. Exit code 0: no finding. 1: findings. 3: there is no graph to look at.
    """
    stages, notes = Stages(), tuple[str, ...]()
    results: list[Finding]
    try:
        source = load(model, InputOptions(mesh, groups, inputs, tp, settings, capture), stages)
    except DivergenceError as error:
        results = [divergence(error)]
    else:
        notes = source.notes
        with stages.stage("lint"):
            results = list(findings(source.graph, source.written))
    if format is Format.JSON:
        rows = [
            {"severity": str(one.severity), **asdict(one), "message": str(one)} for one in results
        ]
        typer.echo(json.dumps(rows, indent=1))
    else:
        for one in results:
            typer.echo(annotation(one, model) if format is Format.GITHUB else str(one))
    severities = Counter(str(one.severity) for one in results)
    counts = ", ".join(f"{n} {severity}{'s' * (n > 1)}" for severity, n in severities.items())
    for note in (*notes, f"{model}: {counts or 'no findings'}"):
        typer.echo(note, err=True)
    return ExitCode.FINDINGS if results else ExitCode.OK


def annotation(finding: Finding, model: str) -> str:
    """Return ``::error file=model.py,line=88,title=double-reduction::…``, as GitHub reads it."""
    place = {"title": finding.rule}
    if finding.path:
        path = os.path.relpath(finding.path) if Path(finding.path).is_absolute() else finding.path
        place = {"file": path, "line": str(finding.line), **place}
    elif is_graph_file(model):
        place = {"file": model, **place}
    properties = ",".join(f"{key}={escaped(text, ':,')}" for key, text in place.items())
    return f"::{finding.severity} {properties}::{escaped(str(finding))}"


def escaped(text: str, more: str = "") -> str:
    """Return ``text`` with percent signs, line ends and the characters ``more`` as %XX."""
    return "".join(f"%{ord(c):02X}" if c in f"%\r\n{more}" else c for c in text)
