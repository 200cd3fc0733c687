"""``commplan plan``: what is done to a model's collectives, and why."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from compiler.check import Report, check
from compiler.cli.inputs import options
from compiler.cli.inputs.arguments import token_counts
from compiler.cli.inputs.files import Given
from compiler.cli.inputs.load_model import load
from compiler.cli.render.collective_tables import Row, collectives_table, rows_of
from compiler.cli.render.forecast import (
    Plans,
    forecast_table,
    forecasts_json,
    ranges_json,
    ranges_table,
    tokens_text,
)
from compiler.cli.render.machine_comparison import compared, print_comparison
from compiler.cli.render.plot import check_plot, draw
from compiler.cli.render.progress import Stages, stderr, stdout
from compiler.cli.render.remark_tables import Shown, assumptions, remarks_json, remarks_table
from compiler.cli.render.timing import pass_table
from compiler.cli.render.verdicts import exit_code, print_report, report_json
from compiler.cost import Launch, load_machine, machines
from compiler.errors import CommPlanError
from compiler.ir.text import value_count
from compiler.optimize.graph_api import UNVERIFIED, OptimizationResult, finished
from compiler.plan.decision import Decision
from compiler.plan.planner_options import PlannerOptions

DEFAULT_TOKENS = "1,64,2048,16384"


@dataclass(frozen=True)
class Planned:
    """One plan, and the token counts it is made for.

    Attributes:
        tokens: the counts; None alone where no size of the graph is symbolic.
        results: the optimizer's result per count; the graphs are the same.
        report: the checker's report.
        rows: collectives and payload per section of the model.
    """

    tokens: tuple[int | None, ...]
    results: tuple[OptimizationResult, ...]
    report: Report
    rows: tuple[Row, ...]


def plan(
    model: options.Model,
    tp: options.Tp = None,
    capture: options.Capture = "auto",
    tokens: Annotated[
        str, typer.Option(metavar="N,…", help="Token counts to plan for.")
    ] = DEFAULT_TOKENS,
    machine: options.MachineName = None,
    launch: options.LaunchOption = Launch.GRAPH,
    compare: Annotated[
        str,
        typer.Option(
            metavar="NAME[:TP],…",
            help="Predict for these machines and world sizes too, and print only what they take.",
        ),
    ] = "",
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw predicted times over tokens, `.png` or `.svg`."),
    ] = None,
    policy: options.PolicyOption = options.POLICY,
    widen: options.Widen = False,
    format: options.FormatOption = options.Format.TABLE,
    pairs: options.Settings = None,
    remarks: Annotated[
        Shown, typer.Option(help="Remarks to print: what was done, what was not, or both.")
    ] = Shown.ALL,
    timing: Annotated[
        bool, typer.Option("--timing", help="Print the time of every pass to standard error.")
    ] = False,
    mesh: options.MeshText = "",
    groups: options.Groups = None,
    inputs: options.Inputs = None,
) -> int:
    """Show which collectives move, what that saves, why, and whether it is proved.

    Captures MODEL, places its reductions for each token count, and checks the result.

    `commplan plan step3p5 --tp 8 --machine h200x8 --tokens 64,4096 --set experts=ep`
    """
    stages, counts = Stages(), token_counts(tokens)
    given = Given(mesh, tuple(groups or ()), tuple(inputs or ()), capture)
    named = load_machine(machine) if machine else None
    if named is None and (compare or plot):
        raise CommPlanError(
            f"{'--compare' if compare else '--plot'} needs a machine",
            remedy=f"pass --machine, one of {', '.join(machines())}",
        )
    others = compared(compare)
    if plot is not None:
        check_plot(plot)
    source = load(model, stages, tp=tp, pairs=pairs or [], given=given)
    search = PlannerOptions(policy, named, launch, widen)
    plans = Plans.of(source, search, stages)
    if compare:
        every = [plans, *(
            Plans.of(
                load(model, stages, tp=ranks or tp, pairs=pairs or [], given=given)
                if ranks and ranks != source.graph.mesh.size else source,
                replace(search, machine=other), stages,
            )
            for other, ranks in others
        )]  # fmt: skip
        print_comparison(every, counts, format is options.Format.JSON)
        return 0
    found = planned(plans, counts, stages)
    if plot is not None:
        draw(plans, plot)
    if timing:
        for one in found:
            stderr().print(pass_table(one.results[0].records))
    if format is options.Format.JSON:
        typer.echo(json.dumps(as_json(plans, found, remarks, stages), indent=1))
    else:
        print_plans(plans, found, remarks, stages)
    return max(exit_code(one.report.verdict) for one in found)


def planned(plans: Plans, counts: Sequence[int], stages: Stages) -> tuple[Planned, ...]:
    """The plans for ``counts``; counts for which the same is done share one."""
    by_plan: dict[Decision, list[OptimizationResult]] = {}
    source = plans.source
    for count in counts if plans.symbol or plans.is_symbolic else (None,):
        with stages.stage("optimize", f"for {tokens_text((count,))}"):
            decided = plans.decided(count)
            result = finished(plans.planner, decided, tokens=count, verify=False)
        by_plan.setdefault(decided, []).append(result)
    found = []
    for results in by_plan.values():
        with stages.stage("check"):
            report = check(source.graph, results[0].spmd)
        rows = rows_of(source.graph, results)
        made_for = tuple(result.plan.tokens for result in results)
        found.append(Planned(made_for, tuple(results), report, rows))
    return tuple(found)


def print_plans(plans: Plans, found: Sequence[Planned], shown: Shown, stages: Stages) -> None:
    """Header, and per plan its collectives, verdict and remarks."""
    console, source = stdout(), plans.source
    first = found[0].results[0]
    console.print(
        f"[bold]{source.name}[/]  mesh {source.graph.mesh}  policy {first.plan.policy}{plans.title}"
    )
    for text in assumptions(source.assumed):
        console.print(f"assumed: {text}", markup=False, highlight=False)
    for text in source.notes:
        console.print(f"note: {text}", markup=False, highlight=False)
    if plans.planner.options.machine is not None:
        console.print(ranges_table(plans))
    before = value_count(source.graph.graph)
    for one in found:
        result = one.results[0]
        after = value_count(result.spmd.graph)
        console.print(f"\n[bold]Plan for {tokens_text(one.tokens)}[/]  {before} → {after} values")
        console.print(collectives_table(one.rows, one.tokens))
        if plans.planner.options.machine is not None:
            for count in one.tokens:
                console.print(forecast_table(plans, count))
        print_report(console, one.report)
        if (table := remarks_table(_remarks(result), shown)) is not None:
            console.print(table)
    console.print("\nseconds: " + ", ".join(f"{k} {v:.1f}" for k, v in _seconds(found, stages)))


def _remarks(result: OptimizationResult) -> list[Any]:
    """All remarks but the one on verification, which happens here."""
    return [remark for remark in result.remarks if remark.reason != UNVERIFIED]


def _seconds(found: Sequence[Planned], stages: Stages) -> list[tuple[str, float]]:
    """Wall time per stage, that of the optimizer by its own stages."""
    total: dict[str, float] = {}
    for name, spent in stages.seconds.items():
        if name != "optimize":
            total[name] = spent
            continue
        for result in (r for one in found for r in one.results):
            for inner, seconds in result.seconds.items():
                total[inner] = total.get(inner, 0.0) + seconds
        total.pop("check", None)
    return list(total.items())


def as_json(plans: Plans, found: Sequence[Planned], shown: Shown, stages: Stages) -> dict[str, Any]:
    """The plans as JSON values; payloads in bytes on one rank, per token count."""
    source, known = plans.source, plans.planner.options.machine is not None
    return {
        "model": source.name,
        "world_size": source.graph.mesh.size,
        "mesh": source.graph.mesh.axes,
        "policy": found[0].results[0].plan.policy,
        **({"ranges": ranges_json(plans)} if known else {}),
        "assumed": source.assumed,
        "notes": source.notes,
        "values": value_count(source.graph.graph),
        "plans": [
            {
                "tokens": [count for count in one.tokens if count is not None],
                "values": value_count(one.results[0].spmd.graph),
                "sections": [row.to_json(one.tokens) for row in one.rows],
                "report": report_json(one.report),
                "remarks": remarks_json(_remarks(one.results[0]), shown),
                **({"predicted": forecasts_json(plans, one.tokens)} if known else {}),
                "plans": [json.loads(result.plan.to_json()) for result in one.results],
            }
            for one in found
        ],
        "seconds": dict(_seconds(found, stages)),
    }
