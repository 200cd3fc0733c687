"""The Dynamo backend: ``torch.compile(model, backend="commplan", options={…})``.

Dynamo traces and guards; AOTAutograd makes the graph functional and DTensors local; here the
graph is planned, rewritten and proved, as ``optimize_allreduce`` does with a captured model; then
Inductor compiles it.
"""

from compiler.backend.backend_options import BackendOptions
from compiler.backend.dynamo_backend import commplan
from compiler.backend.graph_reports import GraphReport, Outcome, reports, reset_reports

__all__ = [
    "BackendOptions",
    "GraphReport",
    "Outcome",
    "commplan",
    "reports",
    "reset_reports",
]
