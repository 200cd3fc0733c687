"""What the planner compares: times on a machine, or bytes where no machine is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import fx

from compiler.ir import access
from compiler.ir.collectives import Kind
from compiler.ir.mesh import ReplicaGroups

WIRE = 1 << 30
"""Weight of a byte on the wire against one that an op reads or writes."""


class Prices(Protocol):
    """What work costs, in integers of one unit."""

    def communication(self, kind: Kind, node: fx.Node, groups: ReplicaGroups) -> int:
        """A collective with the tensor of ``node``, whole, as its payload."""

    def computation(self, node: fx.Node, shares: int) -> int:
        """The op of ``node`` on one of ``shares`` equal parts of its rows."""


@dataclass(frozen=True)
class Bytes:
    """Bytes that a rank sends, then bytes of results: sharing rows never costs more.

    Attributes:
        tokens: value of symbolic sizes; None for their hints.
    """

    tokens: int | None = None

    def communication(self, kind: Kind, node: fx.Node, groups: ReplicaGroups) -> int:
        """An all_reduce sends as much as a reduce_scatter and an all_gather."""
        n, payload = groups.axis_size, access.payload_bytes(node, self.tokens)
        return WIRE * payload * (n - 1) * (2 if kind is Kind.ALL_REDUCE else 1) // n

    def computation(self, node: fx.Node, shares: int) -> int:
        """The bytes of the result."""
        return access.payload_bytes(node, self.tokens) // shares if access.is_tensor(node) else 0
