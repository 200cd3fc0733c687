"""``commplan dump``: a model's graph before, after, or both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from compiler.analysis.placements import placements
from compiler.cli.inputs.files import make_folder, write_text
from compiler.cli.inputs.graph_part import of_layers
from compiler.cli.inputs.load_model import load
from compiler.cli.inputs.options import InputOptions, layer_range
from compiler.cli.render.progress import Stages, say
from compiler.errors import CommPlanError, VerificationError
from compiler.ir.collectives import collectives
from compiler.ir.graph import SpmdGraph
from compiler.ir.remark import RemarkKind
from compiler.ir.text import print_graph, to_dot, to_json, value_count
from compiler.optimize import optimize
from compiler.pipeline import Observer, PassRecord, Pipeline
from compiler.plan.planner import Planner
from compiler.plan.planner_options import PlannerOptions
from compiler.runtime.lowering import run_passes
from passes import LOWERING, PLANNING


def dump(
    model: str,
    options: InputOptions,
    *,
    policy: str,
    widen: bool,
    format: str,
    before: bool,
    after: bool,
    both: bool,
    layers: str,
    output: Path | None,
    print_after: str,
    dump_dir: Path | None,
    opt_bisect_limit: int | None,
    verify_each: bool,
    check_each: bool,
) -> None:
    """Print a model's graph before and after optimization."""
    if before + after + both > 1:
        raise CommPlanError(
            "more than one of --before, --after and --both", remedy="pass one of them"
        )
    stages, selected = Stages(), layer_range(layers) if layers else None
    observers = [
        *([_printer(print_after)] if print_after else ()),
        *([_writer(dump_dir)] if dump_dir is not None else ()),
        *([_verifier()] if verify_each else ()),
    ]
    source = load(model, options, stages)
    graphs = {"before": source.graph}
    if not before or observers or check_each:
        with stages.stage("optimize"):
            pipeline = Pipeline(observers, opt_bisect_limit, check_each)
            search = PlannerOptions(policy, allow_dtype_widening=widen)
            planner = Planner(source.graph, search, pipeline=pipeline)
            result = optimize(planner, planner.decide(None), verify=False)
            if observers or check_each:  # as on ranks that can run every fused op
                lowering = replace(pipeline, records=list(result.records))
                run_passes(result.spmd, lowering, why_unserved=lambda *_: None)
            graphs["after"] = result.spmd
    if not both:
        side = "before" if before else "after"
        graphs = {side: graphs[side]}
    if selected is not None:
        graphs = {side: of_layers(graph, selected) for side, graph in graphs.items()}
    text = text_of(graphs, format)
    if output is None:
        print(text, end="")
    else:
        write_text(output, text)


def text_of(graphs: Mapping[str, SpmdGraph], format: str) -> str:
    """Return the graphs in one of the forms, one after the other."""
    if format == "dot":
        return "".join(
            to_dot(graph, facts=placements(graph), name=side) for side, graph in graphs.items()
        )
    if format == "json":
        texts = {side: to_json(graph, facts=placements(graph)) for side, graph in graphs.items()}
        if len(texts) == 1:
            return "".join(texts.values())
        values = {side: json.loads(text) for side, text in texts.items()}
        return json.dumps(values, indent=1, ensure_ascii=False) + "\n"
    return "\n".join(_text(graph, side) for side, graph in graphs.items())


def _text(graph: SpmdGraph, side: str) -> str:
    counts = f"{value_count(graph.graph)} values, {len(collectives(graph.graph))} collectives"
    text = print_graph(graph, facts=placements(graph), source=True)
    return f"// ----- {side}: {counts} -----\n{text}"


def _after(record: PassRecord) -> str:
    """Return the graph below ``// ----- IR after place-reductions (3): 84 rewrites, … -----``."""
    kinds = [remark.kind for remark in record.remarks]
    counts = f"{kinds.count(RemarkKind.PASSED)} rewrites, {kinds.count(RemarkKind.MISSED)} refused"
    change = "" if record.changed else ", unchanged"
    header = f"// ----- IR after {record.name} ({record.index + 1}): {counts}{change} -----"
    return f"{header}\n{print_graph(record.graph)}"


def _printer(which: str) -> Observer:
    choices = ("all", "changed", *dict.fromkeys(each.name for each in (*PLANNING, *LOWERING)))
    if which not in choices:
        remedy = f"one of {', '.join(choices)}"
        raise CommPlanError("--print-after names no pass", found=repr(which), remedy=remedy)

    def observe(record: PassRecord) -> None:
        if which in ("all", record.name) or (which == "changed" and record.changed):
            say(_after(record))

    return observe


def _writer(folder: Path) -> Observer:
    make_folder(folder)
    return lambda record: write_text(
        folder / f"{record.index + 1:02}-{record.name}.spmd", _after(record)
    )


def _verifier() -> Observer:
    last = ""

    def observe(record: PassRecord) -> None:
        nonlocal last
        before, last = last, print_graph(record.graph)
        if before and not record.changed and before != last:
            raise VerificationError(
                f"pass {record.name} reports no change and returned another graph",
                where=f"pass {record.index + 1} of the pipeline",
                remedy="report this",
            )

    return observe
