"""``commplan report``: plans, collectives, reasons and passes of a model, as one HTML page."""

from __future__ import annotations

import json
from pathlib import Path

from compiler.cli.entry import ExitCode
from compiler.cli.inputs.files import write_text
from compiler.cli.inputs.load_model import load
from compiler.cli.inputs.options import InputOptions, token_counts
from compiler.cli.render.forecast import Plans
from compiler.cli.render.html import to_html
from compiler.cli.render.page_data import report_data
from compiler.cli.render.plan_results import planner_options, results_of
from compiler.cli.render.progress import Stages


def report(
    model: str,
    options: InputOptions,
    *,
    tokens: str,
    machine: str | None,
    launch: str | None,
    policy: str,
    widen: bool,
    format: str,
    output: Path | None,
) -> int:
    """Write the report of a model, and return the exit code of its verdicts."""
    stages, counts = Stages(), set(token_counts(tokens))
    search = planner_options(policy, machine, launch, widen, {"--launch": launch})
    plans = Plans.of(load(model, options, stages), search, stages)
    if machine and plans.planner.symbol:
        counts.update(tokens.first for tokens in plans.planner.table.ranges())
    parts = results_of(plans, sorted(counts), stages)
    with stages.stage("write"):
        data = report_data(plans, parts)
        text = json.dumps(data, indent=1) + "\n" if format == "json" else to_html(data)
    if output is None:
        print(text, end="")
    else:
        write_text(output, text)
    return max(ExitCode[part.proof.verdict] for part in parts)
