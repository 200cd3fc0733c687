"""``commplan dump``: a model's graph before, after, or both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from compiler.analysis.placements import placements
from compiler.cli.inputs import options
from compiler.cli.inputs.files import write_text
from compiler.cli.inputs.graph_part import of_layers
from compiler.cli.inputs.load_model import load
from compiler.cli.inputs.options import InputOptions
from compiler.cli.render.html import to_html
from compiler.cli.render.progress import Stages
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

Format = StrEnum("Format", ["TEXT", "JSON", "DOT", "HTML"])


def dump(
    model: options.Model,
    before: Annotated[bool, typer.Option("--before", help="The graph as captured.")] = False,
    after: Annotated[
        bool, typer.Option("--after", help="The optimized graph. The default.")
    ] = False,
    both: Annotated[
        bool, typer.Option("--both", help="Both. The default, and side by side, in HTML.")
    ] = False,
    format: Annotated[
        Format, typer.Option(help="`text` is what `check`, `plan` and `optimize` read.")
    ] = Format.TEXT,
    layers: Annotated[
        str, typer.Option(metavar="A-B", help="Only these layers, as a graph of their own.")
    ] = "",
    output: options.Output = None,
    print_after: Annotated[
        str,
        typer.Option(
            metavar="all|changed|PASS", help="Print the graph after passes, to standard error."
        ),
    ] = "",
    dump_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the graph after every pass to a file in DIR."),
    ] = None,
    opt_bisect_limit: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Run only the first N passes.")
    ] = None,
    verify_each: Annotated[
        bool,
        typer.Option("--verify-each", help="Check that passes which report no change made none."),
    ] = False,
    check_each: Annotated[
        bool, typer.Option("--check-each", help="Prove every pass that changed something.")
    ] = False,
    tp: options.Tp = None,
    capture: options.Capture = "auto",
    policy: options.PolicyOption = options.POLICY,
    widen: options.Widen = False,
    pairs: options.Settings = None,
    mesh: options.MeshText = "",
    groups: options.Groups = None,
    inputs: options.Inputs = None,
) -> None:
    """Print a model's graph before and after optimization, as text, JSON, DOT or HTML.

    Beside each value stands what ranks hold of it, as derived from the inputs: R the same, S(dim)
    blocks, P partial sums, V something else or not known.

    The optimized graph is printed whatever the checker would say of it; `plan` and `check` tell.
    Options that look at passes see those of planning, then those that make a planned graph run.

    `commplan dump step3p5 --format html --layers 3-4 -o layers.html`
    """
    if before + after + both > 1:
        raise CommPlanError(
            "more than one of --before, --after and --both", remedy="pass one of them"
        )
    stages, selected = Stages(), options.layer_range(layers) if layers else None
    observers = [
        *([_printer(print_after)] if print_after else ()),
        *([_writer(dump_dir)] if dump_dir is not None else ()),
        *([_verifier()] if verify_each else ()),
    ]
    source = load(model, InputOptions(mesh, groups, inputs, tp, pairs, capture), stages)
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
    both |= format is Format.HTML and not (before or after)
    if not both:
        side = "before" if before else "after"
        graphs = {side: graphs[side]}
    if selected is not None:
        graphs = {side: of_layers(graph, selected) for side, graph in graphs.items()}
    text = text_of(graphs, format, source.name)
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_text(output, text)


def text_of(graphs: Mapping[str, SpmdGraph], format: Format, name: str) -> str:
    """Return the graphs in one of the forms; of two, one after the other except in HTML."""
    if format is Format.HTML:
        return to_html(graphs, name)
    if format is Format.DOT:
        return "".join(
            to_dot(graph, facts=placements(graph), name=side) for side, graph in graphs.items()
        )
    if format is Format.JSON:
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
            typer.echo(_after(record), err=True)

    return observe


def _writer(folder: Path) -> Observer:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = error.strerror or str(error)
        raise CommPlanError("cannot make the folder", where=str(folder), found=why) from None
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
