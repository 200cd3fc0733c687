"""What the planner compares: times on a machine, or bytes where no machine is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import fx

from compiler.cost import Launch, Machine, Work, work
from compiler.ir import access
from compiler.ir.collectives import Kind
from compiler.ir.graph import SpmdGraph
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


@dataclass(frozen=True)
class GraphWork:
    """What the ops of a graph do and how large its tensors are, for any number of tokens."""

    graph: SpmdGraph

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """Names of the graph's size symbols."""
        held = (n.meta.get("val") for n in access.node_of(self.graph.graph, "placeholder"))
        sizes = (s for x in held for s in (x.shape if isinstance(x, torch.Tensor) else [x]))
        found = (s.node.expr.free_symbols for s in sizes if isinstance(s, torch.SymInt))
        return tuple(sorted({str(symbol) for symbols in found for symbol in symbols}))

    @cached_property
    def of(self) -> dict[fx.Node, Work]:
        """The work of every op."""
        return {n: work(n) for n in self.graph.graph.nodes}


@dataclass(frozen=True)
class Times:
    """Picoseconds on a machine.

    Attributes:
        machine: whose times.
        tokens: value of every size symbol.
        graph: the work to time.
        launch: whether kernels are launched one by one or in a CUDA graph.
    """

    machine: Machine
    tokens: int
    graph: GraphWork
    launch: Launch = Launch.GRAPH

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """Size symbol -> value."""
        return dict.fromkeys(self.graph.symbols, self.tokens)

    def communication(self, kind: Kind, node: fx.Node, groups: ReplicaGroups) -> int:
        """See ``Machine.collective``."""
        payload = access.payload_bytes(node, self.tokens)
        return self.machine.collective_time_ps(kind, payload, groups.ranks, launch=self.launch)

    def computation(self, node: fx.Node, shares: int) -> int:
        """See ``compiler.cost.compute``."""
        done = self.graph.of[node]
        return done.time_ps(self.sizes, self.machine, shards=shares, launch=self.launch)
