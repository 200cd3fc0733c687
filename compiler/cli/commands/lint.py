"""``commplan lint``: are the reductions of a model right?"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from compiler.cli.inputs import options
from compiler.cli.inputs.files import Given, is_graph_file
from compiler.cli.inputs.load_model import load
from compiler.cli.render.progress import Stages, stderr
from compiler.cli.render.verdicts import ExitCode
from compiler.errors import DivergenceError
from compiler.linter import Finding, findings
from compiler.linter.api import divergence


class Format(StrEnum):
    """How findings are printed."""

    TEXT = "text"
    JSON = "json"
    GITHUB = "github"


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
    stages, given = Stages(), Given(mesh, tuple(groups or ()), tuple(inputs or ()), capture)
    try:
        source = load(model, stages, tp=tp, pairs=settings or [], given=given)
    except DivergenceError as error:
        found, notes = [divergence(error)], []
    else:
        notes = list(source.notes)
        with stages.stage("lint"):
            found = list(findings(source.graph, source.written))
    for line in printed(found, format, model):
        typer.echo(line)
    kinds = Counter(str(one.severity) for one in found)
    counts = ", ".join(f"{n} {kind}{'s' * (n > 1)}" for kind, n in kinds.items())
    for note in (*notes, f"{model}: {counts or 'no findings'}"):
        stderr().print(note, markup=False, highlight=False, soft_wrap=True)
    return ExitCode.FINDINGS if found else ExitCode.OK


def printed(found: Sequence[Finding], format: Format, model: str) -> list[str]:
    """The findings as lines of text, one JSON list, or one annotation each."""
    match format:
        case Format.JSON:
            return [json.dumps([as_json(one) for one in found], indent=1)]
        case Format.GITHUB:
            return [annotation(one, model) for one in found]
    return list(map(str, found))


def as_json(finding: Finding) -> dict[str, Any]:
    """A finding as JSON values."""
    return {"severity": str(finding.severity), **asdict(finding), "message": str(finding)}


def annotation(finding: Finding, model: str) -> str:
    """``::error file=model.py,line=88,title=double-reduction::…``, as GitHub's runners read it."""
    place = {"title": finding.rule}
    if finding.path:
        path = os.path.relpath(finding.path) if Path(finding.path).is_absolute() else finding.path
        place = {"file": path, "line": str(finding.line), **place}
    elif is_graph_file(model):
        place = {"file": model, **place}
    listed = ",".join(f"{key}={escaped(text, ':,')}" for key, text in place.items())
    return f"::{finding.severity} {listed}::{escaped(str(finding))}"


def escaped(text: str, more: str = "") -> str:
    """``text`` with percent signs, line ends and the characters ``more`` as %XX."""
    return "".join(f"%{ord(c):02X}" if c in f"%\r\n{more}" else c for c in text)
