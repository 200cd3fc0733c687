"""``commplan verify``: does a tensor-parallel model compute what it computes on one device?"""

from __future__ import annotations

from compiler.check.single_device import check_single_device
from compiler.cli.entry import ExitCode
from compiler.cli.inputs.files import is_graph_file
from compiler.cli.inputs.load_model import load
from compiler.cli.inputs.options import InputOptions
from compiler.cli.render.progress import Stages
from compiler.cli.render.report import report_document


def verify(model: str, single: str, options: InputOptions, format: str) -> int:
    """Say whether a model on several ranks computes what another computes on one device."""
    stages = Stages()
    parallel = load(model, options, stages)
    name = single or model
    own = options.settings if name == model else ()
    alone = InputOptions(tp=1, settings=own, capture=options.capture)
    whole = load(name, InputOptions() if is_graph_file(name) else alone, stages)
    with stages.stage("verify"):
        constants = whole.constants, parallel.constants
        report = check_single_device(whole.graph, parallel.graph, options.placements, constants)
    report_document(report, "verify").print(format)
    return ExitCode[report.verdict]
