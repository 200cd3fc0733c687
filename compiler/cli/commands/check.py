"""``commplan check``: do two graphs compute the same function?"""

from __future__ import annotations

from compiler.check import check
from compiler.cli.entry import ExitCode
from compiler.cli.inputs.files import PROGRAM, read_graph, warn_undeclared
from compiler.cli.inputs.options import InputOptions
from compiler.cli.render.progress import Stages
from compiler.cli.render.report import report_document
from compiler.ir.graph import SpmdGraph


def check_graphs(source: str, target: str, options: InputOptions, format: str) -> int:
    """Say whether ``target`` computes the same function as ``source`` on every rank."""
    stages = Stages()

    def options_of(name: str) -> InputOptions:
        # A text states its own mesh; the options are for programs, and wrong only if none is one.
        programs = [one for one in (source, target) if one.endswith(PROGRAM)]
        return InputOptions() if programs and name not in programs else options

    def read(name: str) -> SpmdGraph:
        with stages.stage("read", name):
            return read_graph(name, options_of(name))

    graphs = read(source), read(target)
    warn_undeclared(graphs[0], options_of(source))
    with stages.stage("check"):
        report = check(*graphs)
    report_document(report, "check").print(format)
    return ExitCode[report.verdict]
