"""Options of a planner: which plans there are, and what they are compared by."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.cost import Launch, Machine
from compiler.cost.tables import Fused

POLICIES = ("cost", "merge", "boundary", "off")
"""cost: reductions anywhere the laws allow, and rows shared between ranks where a machine is named
and it takes less time; merge: no reduction before the author's; boundary: merge, and rows shared
between ranks in sparse layers; off: none moved."""


@dataclass(frozen=True)
class PlannerOptions:
    """Which plans there are to choose from, and what they are compared by.

    Attributes:
        policy: one of ``POLICIES``.
        machine: plans compare by the time they take on it; None: by bytes.
        launch: whether kernels are launched one by one or in a CUDA graph.
        allow_dtype_widening: reductions may move below conversions to a wider type.
        allow_new_groups: all_reduces may run over groups of ranks that the mesh does not name
            yet.
        fuse: kernels that the machine knows for reductions with addition and norm may be counted.
    """

    policy: str = "cost"
    machine: Machine | None = None
    launch: Launch = Launch.GRAPH
    allow_dtype_widening: bool = False
    allow_new_groups: bool = True
    fuse: bool = True

    def has_kernels(self, ranks: int) -> bool:
        """Whether the machine knows a fused kernel for so many ranks."""
        return (
            self.fuse
            and self.machine is not None
            and any(self.machine.tables_of(kind, ranks) for kind in Fused)
        )
