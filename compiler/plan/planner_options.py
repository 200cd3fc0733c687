"""What a planner searches: which plans there are, and what they are compared by."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.cost import Launch, Machine
from compiler.cost.tables import Fused

POLICIES = ("cost", "merge", "boundary", "off")
"""cost: reductions anywhere the laws allow, and rows shared between ranks where a machine is named
and it takes less time; merge: no reduction before the author's; boundary: merge, and rows shared
between ranks in sparse layers; off: none moved."""


@dataclass(frozen=True)
class Search:
    """What plans there are to choose from, and how they compare.

    Attributes:
        policy: one of ``POLICIES``.
        machine: plans compare by the time they take on it; None: by bytes.
        launch: whether kernels are launched one by one or in a CUDA graph.
        widen: reductions may move below conversions to a wider type.
        join: all_reduces may run over groups of ranks that the mesh has no name for yet.
        fuse: kernels that the machine knows for reductions with addition and norm may be counted.
    """

    policy: str = "cost"
    machine: Machine | None = None
    launch: Launch = Launch.GRAPH
    widen: bool = False
    join: bool = True
    fuse: bool = True

    def has_kernels(self, ranks: int) -> bool:
        """Whether the machine knows a fused kernel for so many ranks."""
        return (
            self.fuse
            and self.machine is not None
            and any(self.machine.tables_of(kind, ranks) for kind in Fused)
        )
