"""``commplan plan``: what is done to a model's collectives, and why."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.text import Text

from compiler.analysis.layers import layers_text
from compiler.cli.entry import ExitCode
from compiler.cli.inputs.load_model import load
from compiler.cli.inputs.options import InputOptions, machines_of, token_counts
from compiler.cli.render import collectives, forecast, report
from compiler.cli.render.document import Annotation, Block, Document
from compiler.cli.render.forecast import Plans
from compiler.cli.render.plan_results import PlanResult, planner_options, results_of
from compiler.cli.render.progress import Stages, stderr
from compiler.cli.render.timeline import check_trace, write_trace
from compiler.ir import access
from compiler.ir.text import value_count


def plan(
    model: str,
    options: InputOptions,
    *,
    tokens: str,
    machine: str | None,
    launch: str | None,
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
    by_time = {"--compare": compare, "--plot": plot, "--trace": trace, "--launch": launch}
    search = planner_options(policy, machine, launch, widen, by_time)
    others = machines_of(compare)
    if plot is not None:
        forecast.check_plot(plot)
    if trace is not None:
        check_trace(trace)
    source = load(model, options, stages)
    plans = Plans.of(source, search, stages)
    if compare:
        every = [plans]
        for other, ranks in others:
            same = ranks in (None, source.graph.mesh.size)
            resized = source if same else load(model, replace(options, tp=ranks), stages)
            every.append(Plans.of(resized, replace(search, machine=other), stages))
        values = {"machines": forecast.comparison_json(every, counts)}
        Document("machines/1", values, [forecast.comparison_table(every, counts)]).print(format)
        return 0
    parts = results_of(plans, counts, stages)
    if plot is not None:
        forecast.draw(plans, plot)
    if trace is not None:
        write_trace(plans, [count for part in parts for count in part.tokens], trace)
    for part in parts if timing else ():
        stderr().print(report.pass_table(part.results[0].records))
    Document(
        "plan/1",
        plans_json(plans, parts, remarks, stages),
        list(plan_blocks(plans, parts, remarks, stages)),
        [note for part in parts for note in plan_annotations(plans, part, remarks)],
    ).print(format)
    return max(ExitCode[part.proof.verdict] for part in parts)


def plan_annotations(plans: Plans, part: PlanResult, shown: str) -> Iterator[Annotation]:
    """Yield what GitHub shows of a plan: the verdict, and remarks where the model's code is."""
    title = f"{plans.source.name}: plan for {forecast.tokens_text(part.tokens)}"
    yield report.verdict_annotation(part.proof, title)
    nodes = (plans.source.graph.graph, part.results[0].spmd.graph)
    places = {node.name: access.source_path(node) for graph in nodes for node in graph.nodes}
    alike: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for remark in report.shown_remarks(part.remarks, shown):
        at = str(remark.kind), places.get(remark.value.lstrip("%"), "")
        alike.setdefault(at, []).append((remark.layer, remark.reason))
    for (kind, place), lines in alike.items():
        for reason, layers in report.layers_by_text(lines).items():
            yield Annotation("notice", kind, f"{reason}  ({layers_text(layers)})", place)


def plan_blocks(
    plans: Plans, parts: Sequence[PlanResult], shown: str, stages: Stages
) -> Iterator[Block]:
    """Yield a header, and per plan its collectives, predicted times, verdict and remarks."""
    source, policy = plans.source, plans.planner.options.policy
    title = f"  mesh {source.graph.mesh}  policy {policy}{plans.title}"
    yield Text.assemble((source.name, "bold"), title)
    yield from (f"assumed: {text}" for text in report.assumptions(source.assumed))
    yield from (f"note: {text}" for text in source.notes)
    if plans.machine is not None:
        yield forecast.ranges_table(plans)
    before = value_count(source.graph.graph)
    for part in parts:
        tokens = forecast.tokens_text(part.tokens)
        values = f"  {before} → {part.values} values"
        yield Text.assemble((f"\nPlan for {tokens}", "bold"), values)
        yield collectives.collectives_table(part.rows, part.tokens)
        for count in part.tokens if plans.machine is not None else ():
            yield forecast.forecast_table(plans, count)
        yield from report.report_blocks(part.proof)
        if (table := report.remarks_table(part.remarks, shown)) is not None:
            yield table
    seconds = (f"{stage} {spent:.1f}" for stage, spent in _seconds(parts, stages).items())
    yield "\nseconds: " + ", ".join(seconds)


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
