"""``commplan plan``: what is done to a model's collectives, and why."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.text import Text

from compiler.check import Report, check
from compiler.cli.entry import ExitCode
from compiler.cli.inputs.load_model import load
from compiler.cli.inputs.options import InputOptions, machines_of, token_counts
from compiler.cli.render import collectives, forecast, report
from compiler.cli.render.forecast import Plans
from compiler.cli.render.progress import WIDTH_OF_FORECASTS, Stages, print_json, stderr, stdout
from compiler.cost import Launch, load_machine, machines
from compiler.errors import CommPlanError
from compiler.ir.remark import Remark
from compiler.ir.text import value_count
from compiler.optimize import OptimizationResult, optimize
from compiler.optimize.remarks import UNVERIFIED
from compiler.plan.decision import Decision
from compiler.plan.planner_options import PlannerOptions


def plan(
    model: str,
    options: InputOptions,
    *,
    tokens: str,
    machine: str | None,
    launch: str | None,
    compare: str,
    plot: Path | None,
    policy: str,
    widen: bool,
    format: str,
    remarks: str,
    timing: bool,
) -> int:
    """Show which collectives move, what that saves, why, and whether it is proved."""
    stages, counts = Stages(), token_counts(tokens)
    by_time = {"--compare": compare, "--plot": plot, "--launch": launch}
    if machine is None and (idle := [option for option, value in by_time.items() if value]):
        raise CommPlanError(
            f"{', '.join(idle)} needs a machine",
            remedy=f"pass --machine, one of {', '.join(machines())}",
        )
    on = load_machine(machine) if machine else None
    search = PlannerOptions(policy, on, Launch(launch or "graph"), widen)
    others = machines_of(compare)
    if plot is not None:
        forecast.check_plot(plot)
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
    if timing:
        for part in parts:
            stderr().print(report.pass_table(part.results[0].records))
    if as_json:
        print_json(plans_json(plans, parts, remarks, stages))
    else:
        print_plans(plans, parts, remarks, stages)
    return max(ExitCode[part.proof.verdict] for part in parts)


@dataclass(frozen=True)
class PlanResult:
    """One plan, with its result for every token count that it serves.

    Attributes:
        results: the optimizer's, per token count; the graphs are the same.
        proof: the checker's report.
        rows: collectives and payload per section of the model.
    """

    results: tuple[OptimizationResult, ...]
    proof: Report
    rows: tuple[collectives.Row, ...]

    @property
    def tokens(self) -> tuple[int | None, ...]:
        """The token counts; None alone where no size of the graph is symbolic."""
        return tuple(result.plan.tokens for result in self.results)

    @property
    def values(self) -> int:
        """Number of values of the optimized graph."""
        return value_count(self.results[0].spmd.graph)

    @property
    def remarks(self) -> list[Remark]:
        """All remarks but the one on verification, which happens here."""
        return [remark for remark in self.results[0].remarks if remark.reason != UNVERIFIED]


def results_of(plans: Plans, counts: Sequence[int], stages: Stages) -> list[PlanResult]:
    """Return the plans for ``counts``; counts with the same plan share one."""
    by_plan: dict[Decision, list[OptimizationResult]] = {}
    planner = plans.planner
    for count in counts if planner.symbol or plans.is_symbolic else (None,):
        with stages.stage("optimize", f"for {forecast.tokens_text((count,))}"):
            decided = planner.plan_for(count)
            result = optimize(planner, decided, tokens=count, verify=False)
        by_plan.setdefault(decided, []).append(result)
    graph, parts = plans.source.graph, []
    for results in by_plan.values():
        with stages.stage("check"):
            proof = check(graph, results[0].spmd)
        parts.append(PlanResult(tuple(results), proof, collectives.rows_of(graph, results)))
    return parts


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
