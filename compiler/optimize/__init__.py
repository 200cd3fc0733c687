"""The composition root: optimize a graph or a model, and check two graphs against each other."""

from compiler.optimize.graph import OptimizationResult, check_equivalence, optimize_graph
from compiler.optimize.model import ModelReport, optimize_allreduce, optimize_capture

__all__ = [
    "ModelReport",
    "OptimizationResult",
    "check_equivalence",
    "optimize_allreduce",
    "optimize_capture",
    "optimize_graph",
]
