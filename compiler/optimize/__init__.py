"""The composition root: optimize a graph or model, check two graphs against each other."""

from compiler.optimize.compare_devices import check_parallel
from compiler.optimize.compare_graphs import check_equivalence
from compiler.optimize.graph_api import optimize_graph
from compiler.optimize.model_api import optimize_allreduce
from compiler.optimize.optimizer import optimize
from compiler.optimize.prepare import optimize_captured
from compiler.optimize.result import ModelReport, OptimizationResult

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
