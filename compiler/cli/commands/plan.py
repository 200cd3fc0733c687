"""``commplan plan``: what is done to a model's collectives, and why."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.text import Text

from compiler.cli.entry import ExitCode
from compiler.cli.inputs.load_model import load
from compiler.cli.inputs.options import InputOptions, machines_of, token_counts
from compiler.cli.render import collectives, forecast, report
from compiler.cli.render.forecast import Plans
from compiler.cli.render.plan_results import PlanResult, results_of
from compiler.cli.render.progress import WIDTH_OF_FORECASTS, Stages, print_json, stderr, stdout
from compiler.cli.render.timeline import check_trace, write_trace
from compiler.cost import Launch, load_machine, machines
from compiler.errors import CommPlanError
from compiler.ir.text import value_count
from compiler.plan.planner_options import PlannerOptions


def plan(
    model: str,
    options: InputOptions,
    *,
    tokens: str,
    machine: str | None,
    launch: str,
    compare: str,
    plot: Path | None,
    trace: Path | None,
    policy: str,
    widen: bool,
    format: str,
    remarks: str,
    timing: bool,
) -> int:
    """Show which collectives move, what that saves, why, and whether it is proved."""
    stages, counts = Stages(), token_counts(tokens)
    _check_predictions(machine, compare, plot, trace)
    on = load_machine(machine) if machine else None
    search = PlannerOptions(policy, on, Launch(launch), widen)
    others = machines_of(compare)
    source = load(model, options, stages)
    plans = Plans.of(source, search, stages)
    as_json = format == "json"
    if compare:
        every = [plans]
        for other, ranks in others:
            same = ranks in (None, source.graph.mesh.size)
            resized = source if same else load(model, replace(options, tp=ranks), stages)
            every.append(Plans.of(resized, replace(search, machine=other), stages))
        if as_json:
            print_json(forecast.comparison_json(every, counts))
        else:
            stdout(WIDTH_OF_FORECASTS).print(forecast.comparison_table(every, counts))
        return 0
    parts = results_of(plans, counts, stages)
    if plot is not None:
        forecast.draw(plans, plot)
    if trace is not None:
        write_trace(plans, [count for part in parts for count in part.tokens], trace)
    for part in parts if timing else ():
        stderr().print(report.pass_table(part.results[0].records))
    if as_json:
        print_json(plans_json(plans, parts, remarks, stages))
    else:
        print_plans(plans, parts, remarks, stages)
    return max(ExitCode[part.proof.verdict] for part in parts)


def _check_predictions(
    machine: str | None, compare: str, plot: Path | None, trace: Path | None
) -> None:
    """Raise CommPlanError unless what is predicted can be predicted and written."""
    options = {"--compare": compare, "--plot": plot, "--trace": trace}
    if machine is None and any(options.values()):
        raise CommPlanError(
            f"{next(name for name, value in options.items() if value)} needs a machine",
            remedy=f"pass --machine, one of {', '.join(machines())}",
        )
    if plot is not None:
        forecast.check_plot(plot)
    if trace is not None:
        check_trace(trace)


def print_plans(plans: Plans, parts: Sequence[PlanResult], shown: str, stages: Stages) -> None:
    """Print a header, and per plan its collectives, predicted times, verdict and remarks."""
    console, wide = stdout(), stdout(WIDTH_OF_FORECASTS)
    source, policy = plans.source, plans.planner.options.policy
    title = f"  mesh {source.graph.mesh}  policy {policy}{plans.title}"
    console.print(Text.assemble((source.name, "bold"), title), soft_wrap=True)
    lines = [f"assumed: {text}" for text in report.assumptions(source.assumed)]
    for line in (*lines, *(f"note: {text}" for text in source.notes)):
        console.print(line, soft_wrap=True)
    if plans.machine is not None:
        wide.print(forecast.ranges_table(plans))
    before = value_count(source.graph.graph)
    for part in parts:
        tokens = forecast.tokens_text(part.tokens)
        values = f"  {before} → {part.values} values"
        console.print(Text.assemble((f"\nPlan for {tokens}", "bold"), values))
        console.print(collectives.collectives_table(part.rows, part.tokens))
        for count in part.tokens if plans.machine is not None else ():
            wide.print(forecast.forecast_table(plans, count))
        report.print_report(console, part.proof)
        if (table := report.remarks_table(part.remarks, shown)) is not None:
            console.print(table)
    seconds = (f"{stage} {spent:.1f}" for stage, spent in _seconds(parts, stages).items())
    console.print("\nseconds: " + ", ".join(seconds), soft_wrap=True)


def _seconds(parts: Sequence[PlanResult], stages: Stages) -> dict[str, float]:
    """Return wall time per stage; the optimizer's is that of its own stages."""
    seconds = {stage: spent for stage, spent in stages.seconds.items() if stage != "optimize"}
    for result in (result for part in parts for result in part.results):
        for stage, spent in result.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + spent
    return seconds


def plans_json(
    plans: Plans, parts: Sequence[PlanResult], shown: str, stages: Stages
) -> dict[str, Any]:
    """Return the plans as JSON values; payloads in bytes on one rank, per token count."""
    source, by_time = plans.source, plans.machine is not None
    return {
        "model": source.name,
        "world_size": source.graph.mesh.size,
        "mesh": source.graph.mesh.axes,
        "policy": plans.planner.options.policy,
        **({"ranges": forecast.ranges_json(plans)} if by_time else {}),
        "assumed": source.assumed,
        "notes": source.notes,
        "values": value_count(source.graph.graph),
        "plans": [
            {
                "tokens": [count for count in part.tokens if count is not None],
                "values": part.values,
                "sections": [row.to_json(part.tokens) for row in part.rows],
                "report": report.report_json(part.proof),
                "remarks": report.remarks_json(part.remarks, shown),
                **({"predicted": forecast.forecasts_json(plans, part.tokens)} if by_time else {}),
                "plans": [json.loads(result.plan.to_json()) for result in part.results],
            }
            for part in parts
        ],
        "seconds": _seconds(parts, stages),
    }
