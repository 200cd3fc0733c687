"""The composition root: optimize or lint a graph or model, check two graphs against each other."""

from compiler.optimize.equivalence import check_equivalence
from compiler.optimize.graph import OptimizationResult, optimize_graph
from compiler.optimize.lint import lint
from compiler.optimize.model import optimize_allreduce, optimize_capture
from compiler.optimize.report import ModelReport

__all__ = [
    "ModelReport",
    "OptimizationResult",
    "check_equivalence",
    "lint",
    "optimize_allreduce",
    "optimize_capture",
    "optimize_graph",
]
