"""``commplan lint``: are the reductions of a model right?"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from compiler.analysis.layers import layers_text
from compiler.cli.entry import ExitCode, printable
from compiler.cli.inputs.files import is_graph_file
from compiler.cli.inputs.load_model import load
from compiler.cli.inputs.options import InputOptions
from compiler.cli.render.progress import Stages, print_json, say
from compiler.errors import DivergenceError
from compiler.linter import Coverage, Finding, LintFacts, coverage, findings_of
from compiler.linter.api import divergence


def lint(model: str, options: InputOptions, format: str, require_coverage: int) -> int:
    """Find wrong reductions in a model, and say how much of it was looked at."""
    stages, notes = Stages(), tuple[str, ...]()
    extent: Coverage | None = None
    results: list[Finding]
    try:
        source = load(model, options, stages)
    except DivergenceError as error:
        results = [divergence(error)]
    else:
        notes = source.notes
        with stages.stage("lint"):
            facts = LintFacts(source.graph)
            results, extent = list(findings_of(facts, source.written)), coverage(facts)
            names = tuple(source.keys.get(name, name) for name in extent.unknown_inputs)
            extent = replace(extent, unknown_inputs=names)
    rows = [{"severity": str(one.severity), **asdict(one), "message": str(one)} for one in results]
    if format == "json":
        print_json({"findings": rows, "coverage": extent and coverage_json(extent)})
    for one in results if format != "json" else ():
        print(annotation(one, printable(model)) if format == "github" else str(one))
    severities = Counter(row["severity"] for row in rows)
    counts = ", ".join(f"{n} {severity}{'s' * (n > 1)}" for severity, n in severities.items())
    for note in notes:
        say(note)
    say(f"{printable(model)}: {counts or 'no findings'}")
    if extent is None:
        return ExitCode.FINDINGS
    say(coverage_text(extent))
    if format == "github" and extent.percent < 100:
        print(f"::notice title=coverage::{escaped(coverage_text(extent))}")
    if results:
        return ExitCode.FINDINGS
    return ExitCode.OK if extent.percent >= require_coverage else ExitCode.UNPROVED


def coverage_text(extent: Coverage) -> str:
    """Return how much was looked at, and what was not."""
    products, inputs = len(extent.unknown_products), len(extent.unknown_inputs)
    text = (
        f"coverage {extent.percent} %: placements known of {extent.inputs - inputs} of "
        f"{extent.inputs} inputs, {extent.products - products} of {extent.products} products"
    )
    if products:
        text += f"\n  missing reductions not looked for in {layers_text(extent.unknown_products)}"
    if extent.own_parts:
        text += (
            "\n  computed from each rank's own block of a dimension, which may be meant: "
            f"{layers_text(extent.own_parts)}; `commplan verify` compares with the model on one "
            "device"
        )
    if inputs:
        text += f"\n  to declare with --input: {layers_text(extent.unknown_inputs)}"
    return text


def coverage_json(extent: Coverage) -> dict[str, Any]:
    """Return the coverage as JSON values."""
    return {"percent": extent.percent, **asdict(extent)}


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
