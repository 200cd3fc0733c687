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
from compiler.cli.inputs.arguments import layer_range
from compiler.cli.inputs.files import Given, write_text
from compiler.cli.inputs.graph_part import of_layers
from compiler.cli.inputs.load_model import load
from compiler.cli.observe import Debugging, observers
from compiler.cli.render.html import to_html
from compiler.cli.render.progress import Stages
from compiler.errors import CommPlanError
from compiler.ir.collectives import collectives
from compiler.ir.graph import SpmdGraph
from compiler.ir.text import print_graph, to_dot, to_json, value_count
from compiler.optimize.graph_api import optimize_spmd
from compiler.pipeline import Pipeline
from compiler.runtime.lowering import run_passes


class Format(StrEnum):
    """The form of the output."""

    TEXT = "text"
    JSON = "json"
    DOT = "dot"
    HTML = "html"


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
    both |= format is Format.HTML and not (before or after)
    stages, wanted = Stages(), layer_range(layers) if layers else None
    debugging = Debugging(print_after, dump_dir, verify_each)
    watching = observers(debugging)
    given = Given(mesh, tuple(groups or ()), tuple(inputs or ()), capture)
    source = load(model, stages, tp=tp, pairs=pairs or [], given=given)
    graphs = {"before": source.graph}
    if not before or debugging.any or check_each:
        pipeline = Pipeline(watching, opt_bisect_limit, check_each)
        with stages.stage("optimize"):
            result = optimize_spmd(
                source.graph,
                policy=policy,
                verify=False,
                tokens=None,
                pipeline=pipeline,
                widen=widen,
            )
            if debugging.any or check_each:  # as on ranks that can run every fused op
                lowering = replace(pipeline, records=list(result.records))
                run_passes(result.spmd, lowering, why_unserved=lambda *_: None)
        graphs["after"] = result.spmd
    kept = ("before", "after") if both else ("before",) if before else ("after",)
    graphs = {side: graphs[side] for side in kept}
    if wanted is not None:
        graphs = {side: of_layers(graph, wanted) for side, graph in graphs.items()}
    text = written(graphs, format, source.name)
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_text(output, text)


def written(graphs: Mapping[str, SpmdGraph], format: Format, name: str) -> str:
    """The graphs in one of the forms; of two, one after the other except in HTML."""
    match format:
        case Format.HTML:
            return to_html(graphs, name)
        case Format.DOT:
            return "".join(
                to_dot(graph, facts=placements(graph), name=side) for side, graph in graphs.items()
            )
        case Format.JSON:
            texts = {side: to_json(g, facts=placements(g)) for side, g in graphs.items()}
            if len(texts) == 1:
                return "".join(texts.values())
            held = {side: json.loads(text) for side, text in texts.items()}
            return json.dumps(held, indent=1, ensure_ascii=False) + "\n"
        case Format.TEXT:
            return "\n".join(_text(graph, side) for side, graph in graphs.items())


def _text(graph: SpmdGraph, side: str) -> str:
    counts = f"{value_count(graph.graph)} values, {len(collectives(graph.graph))} collectives"
    text = print_graph(graph, facts=placements(graph), source=True)
    return f"// ----- {side}: {counts} -----\n{text}"
