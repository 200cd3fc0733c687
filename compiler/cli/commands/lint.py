"""``commplan lint``: are the reductions of a model right?"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from compiler.cli.entry import ExitCode
from compiler.cli.inputs.files import is_graph_file
from compiler.cli.inputs.load_model import load
from compiler.cli.inputs.options import InputOptions
from compiler.cli.render.progress import Stages, print_json, say
from compiler.errors import DivergenceError
from compiler.linter import Finding, findings
from compiler.linter.api import divergence


def lint(model: str, options: InputOptions, format: str) -> int:
    """Find wrong reductions in a model."""
    stages, notes = Stages(), tuple[str, ...]()
    results: list[Finding]
    try:
        source = load(model, options, stages)
    except DivergenceError as error:
        results = [divergence(error)]
    else:
        notes = source.notes
        with stages.stage("lint"):
            results = list(findings(source.graph, source.written))
    if format == "json":
        rows = [
            {"severity": str(one.severity), **asdict(one), "message": str(one)} for one in results
        ]
        print_json(rows)
    else:
        for one in results:
            print(annotation(one, model) if format == "github" else str(one))
    severities = Counter(str(one.severity) for one in results)
    counts = ", ".join(f"{n} {severity}{'s' * (n > 1)}" for severity, n in severities.items())
    for note in (*notes, f"{model}: {counts or 'no findings'}"):
        say(note)
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
