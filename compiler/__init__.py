"""Communication planning for tensor-parallel PyTorch models.

Names are imported when they are first used: the command line starts, and can be interrupted,
before PyTorch is loaded.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compiler.backend import GraphReport, reports, reset_reports
    from compiler.check import Report, Verdict
    from compiler.check.single_device import Packed
    from compiler.errors import CommPlanError, UndeclaredInputs
    from compiler.ir.dialects import CollectiveOp, ComposedOp, OpaqueOp, check_op, register_ops
    from compiler.ir.mesh import Mesh
    from compiler.ir.placement import Partial, Replicate, Shard, Varying
    from compiler.linter import Finding
    from compiler.linter.api import lint
    from compiler.optimize import (
        ModelReport,
        OptimizationResult,
        check_equivalence,
        check_parallel,
        optimize_allreduce,
        optimize_graph,
    )

__all__ = [
    "CollectiveOp",
    "CommPlanError",
    "ComposedOp",
    "Finding",
    "GraphReport",
    "Mesh",
    "ModelReport",
    "OpaqueOp",
    "OptimizationResult",
    "Packed",
    "Partial",
    "Replicate",
    "Report",
    "Shard",
    "UndeclaredInputs",
    "Varying",
    "Verdict",
    "check_equivalence",
    "check_op",
    "check_parallel",
    "lint",
    "optimize_allreduce",
    "optimize_graph",
    "register_ops",
    "reports",
    "reset_reports",
]

_HOMES = {
    "compiler.backend": ("GraphReport", "reports", "reset_reports"),
    "compiler.linter": ("Finding",),
    "compiler.linter.api": ("lint",),
    "compiler.check": ("Report", "Verdict"),
    "compiler.check.single_device": ("Packed",),
    "compiler.errors": ("CommPlanError", "UndeclaredInputs"),
    "compiler.ir.dialects": ("CollectiveOp", "ComposedOp", "OpaqueOp", "check_op", "register_ops"),
    "compiler.ir.mesh": ("Mesh",),
    "compiler.ir.placement": ("Partial", "Replicate", "Shard", "Varying"),
    "compiler.optimize": (
        "ModelReport",
        "OptimizationResult",
        "check_equivalence",
        "check_parallel",
        "optimize_allreduce",
        "optimize_graph",
    ),
}


def __getattr__(name: str) -> Any:
    """The first use of an exported name, which is an attribute from then on."""
    home = next((home for home, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_module("compiler.optimize")  # everything, as one import: operators are registered there
    globals()[name] = value = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
