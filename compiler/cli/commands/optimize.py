"""``commplan optimize``: a saved graph, optimized and saved again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compiler.check import check
from compiler.cli.inputs import options
from compiler.cli.inputs.files import (
    PROGRAM,
    Given,
    program_graph,
    read_graph,
    read_program,
    warn_undeclared,
    write_bytes,
    write_text,
)
from compiler.cli.inputs.programs import rewritten, saved
from compiler.cli.render.progress import Stages, stderr
from compiler.cli.render.verdicts import exit_code, print_report
from compiler.errors import CommPlanError
from compiler.ir.text import print_graph
from compiler.optimize.graph_api import optimize_spmd
from compiler.pipeline import Pipeline


def optimize(
    file: Annotated[str, typer.Argument(help="Graph file, `.spmd` or `.pt2`.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="Where to write the result.")
    ],
    policy: options.PolicyOption = options.POLICY,
    widen: options.Widen = False,
    tokens: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="What symbolic sizes count as."),
    ] = None,
    mesh: options.MeshText = "",
    groups: options.Groups = None,
    inputs: options.Inputs = None,
) -> int:
    """Optimize the graph in FILE, check it, and write it in the same form.

    Nothing is written unless the result is shown to be equivalent.
    """
    if output.suffix != Path(file).suffix:
        raise CommPlanError(
            "the result has the form of the source",
            where=str(output),
            found=f"{Path(file).suffix or 'no suffix'} in, {output.suffix or 'no suffix'} out",
            remedy="give both files the same suffix, .spmd or .pt2",
        )
    stages, given = Stages(), Given(mesh, tuple(groups or ()), tuple(inputs or ()))
    program = None
    with stages.stage("read", file):
        if output.suffix == PROGRAM:
            program = read_program(Path(file))
            source = program_graph(program, given, file)
        else:
            source = read_graph(file, given)
    warn_undeclared(source, given)
    with stages.stage("optimize"):
        result = optimize_spmd(
            source,
            policy=policy,
            verify=True,  # what cannot be proved is withdrawn
            tokens=tokens,
            pipeline=Pipeline(),
            widen=widen,
            join=program is None,  # a program runs with the groups that it names
        )
    with stages.stage("check"):
        report = check(source, result.spmd)
    print_report(stderr(), report)
    if not report.verdict.runs:
        return exit_code(report.verdict)
    if program is None:
        write_text(output, print_graph(result.spmd))
    else:
        write_bytes(output, saved(rewritten(program, result.graph_module)))
    before, after = (sum(side.counts.values()) for side in (result.before, result.after))
    stderr().print(
        f"{output}: {before} collectives before, {after} after", highlight=False, soft_wrap=True
    )
    return 0
