"""The composition root: optimize a graph or model, check two graphs against each other."""

from compiler.optimize.compare_graphs import check_equivalence, check_parallel
from compiler.optimize.graph_api import OptimizationResult, optimize_graph
from compiler.optimize.model_api import optimize_allreduce, optimize_capture
from compiler.optimize.report import ModelReport

__all__ = [
    "ModelReport",
    "OptimizationResult",
    "check_equivalence",
    "check_parallel",
    "optimize_allreduce",
    "optimize_capture",
    "optimize_graph",
]
