"""``commplan optimize``: a saved graph, optimized and saved again."""

from __future__ import annotations

from pathlib import Path

from compiler.check import check
from compiler.cli.entry import ExitCode
from compiler.cli.inputs import files
from compiler.cli.inputs.options import InputOptions
from compiler.cli.inputs.saved_programs import program_bytes, read_program
from compiler.cli.render.progress import Stages, say
from compiler.cli.render.report import report_blocks
from compiler.errors import CommPlanError
from compiler.ir.text import print_graph
from compiler.optimize import optimizer
from compiler.plan.planner import Planner
from compiler.plan.planner_options import PlannerOptions


def optimize(
    file: str, options: InputOptions, *, output: Path, policy: str, widen: bool, tokens: int | None
) -> int:
    """Optimize the graph in ``file``, check it, and write it in the same form."""
    if output.suffix != Path(file).suffix:
        raise CommPlanError(
            "the result has the form of the source",
            where=str(output),
            found=f"{Path(file).suffix or 'no suffix'} in, {output.suffix or 'no suffix'} out",
            remedy="give both files the same suffix, .spmd or .pt2",
        )
    stages = Stages()
    with stages.stage("read", file):
        program = read_program(Path(file)) if output.suffix == files.PROGRAM else None
        source = (
            files.program_graph(program, options, file)
            if program
            else files.read_graph(file, options)
        )
    files.warn_undeclared(source, options)
    with stages.stage("optimize"):
        search = PlannerOptions(
            policy,
            allow_dtype_widening=widen,
            allow_new_groups=program is None,  # a program runs with the groups that it names
        )
        planner = Planner(source, search)
        # what cannot be proved is withdrawn
        result = optimizer.optimize(planner, planner.decide(tokens), tokens=tokens)
    with stages.stage("check"):
        report = check(source, result.spmd)
    for line in report_blocks(report):
        say(str(line))
    if not report.verdict.runs:
        return ExitCode[report.verdict]
    if program is None:
        files.write_text(output, print_graph(result.spmd))
    else:
        files.write_bytes(output, program_bytes(program, result.graph_module))
    before, after = (sum(side.counts.values()) for side in (result.before, result.after))
    say(f"{output}: {before} collectives before, {after} after")
    return 0
