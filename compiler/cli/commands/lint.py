"""``commplan lint``: are the reductions of a model right?"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from compiler.analysis.layers import layers_text
from compiler.cli.entry import ExitCode
from compiler.cli.inputs.files import is_graph_file
from compiler.cli.inputs.load_model import load
from compiler.cli.inputs.options import InputOptions
from compiler.cli.render.document import Annotation, Document
from compiler.cli.render.progress import Stages
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
            results = list(findings_of(facts, source.written))
            extent = coverage(facts, source.keys)
    rows = [{"severity": str(one.severity), **asdict(one), "message": str(one)} for one in results]
    severities = Counter(row["severity"] for row in rows)
    counts = ", ".join(f"{n} {severity}{'s' * (n > 1)}" for severity, n in severities.items())
    summary = f"{model}: {counts or 'no findings'}"
    annotations = [annotation(one, model) for one in results]
    enough = extent is None or extent.percent >= require_coverage
    if extent is not None:
        summary += f"\n{coverage_text(extent)}"
        severity = "notice" if enough else "error"
        annotations.append(Annotation(severity, "coverage", coverage_text(extent)))
    Document(
        "lint/1",
        {"findings": rows, "coverage": extent and coverage_json(extent)},
        [*map(str, results), *notes, summary],
        annotations,
    ).print(format)
    if results:
        return ExitCode.FINDINGS
    return ExitCode.OK if enough else ExitCode.UNPROVED


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


def annotation(finding: Finding, model: str) -> Annotation:
    """Return the finding beside its line of the code; of a saved graph, beside the file."""
    place = f"{finding.path}:{finding.line}" if finding.path else ""
    file = model if is_graph_file(model) else ""
    return Annotation(str(finding.severity), finding.rule, str(finding), place or file)
