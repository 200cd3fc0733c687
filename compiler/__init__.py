"""Communication planning for tensor-parallel PyTorch models."""

from compiler.analysis.lint import Finding
from compiler.check import Report, Verdict
from compiler.errors import CommPlanError
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Partial, Replicate, Shard, Varying
from compiler.optimize import (
    ModelReport,
    OptimizationResult,
    check_equivalence,
    lint,
    optimize_allreduce,
    optimize_graph,
)

__all__ = [
    "CommPlanError",
    "Finding",
    "Mesh",
    "ModelReport",
    "OptimizationResult",
    "Partial",
    "Replicate",
    "Report",
    "Shard",
    "Varying",
    "Verdict",
    "check_equivalence",
    "lint",
    "optimize_allreduce",
    "optimize_graph",
]
