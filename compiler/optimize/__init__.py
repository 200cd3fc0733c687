"""The composition root: optimize a graph or model, check two graphs against each other."""

from compiler.optimize.compare_devices import check_parallel
from compiler.optimize.graph_api import check_equivalence, optimize_graph
from compiler.optimize.model_api import optimize_allreduce, optimize_captured
from compiler.optimize.optimizer import optimize
from compiler.optimize.report import ModelReport
from compiler.optimize.result import OptimizationResult

__all__ = [
    "ModelReport",
    "OptimizationResult",
    "check_equivalence",
    "check_parallel",
    "optimize",
    "optimize_allreduce",
    "optimize_captured",
    "optimize_graph",
]
