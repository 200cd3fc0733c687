"""What a graph takes on a machine: its collectives and kernels, one after the other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx

from compiler.ir import access
from compiler.ir.collectives import OPS, WAIT, Kind, collective
from compiler.ir.graph import SpmdGraph
from compiler.ir.row_ops import ALL_SLICE, PAD_ROWS
from compiler.plan.prices import Item, Times


@dataclass(frozen=True)
class Spent:
    """Time on one rank, in picoseconds.

    Attributes:
        communication_ps: in collectives.
        computation_ps: in kernels.
    """

    communication_ps: int = 0
    computation_ps: int = 0

    @property
    def total_ps(self) -> int:
        """Both, one after the other."""
        return self.communication_ps + self.computation_ps

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.communication_ps + other.communication_ps,
            self.computation_ps + other.computation_ps,
        )


def items_of(graph: SpmdGraph, nodes: Iterable[fx.Node]) -> list[Item]:
    """What there is to pay for, for ``nodes`` as they stand in ``graph``."""
    found = []
    for node in nodes:
        called = collective(node) if node.target is WAIT else None
        if called is not None:
            operand_is_larger = called.kind is Kind.REDUCE_SCATTER
            payload = called.operand if operand_is_larger else node
            found.append(Item(payload, called.kind, graph.mesh.group(called.group)))
        elif node.target is PAD_ROWS:
            (x,), ranks = access.operands(node), int(access.arguments(node)["multiple"])
            found.append(Item(x, shares=ranks, pads=True))
        elif node.target not in OPS and node.target is not ALL_SLICE:  # a view
            found.append(Item(node))
    return found


def spent(times: Times, item: Item, count: int = 1) -> Spent:
    """What ``count`` items take."""
    if item.fused is not None:
        if (kernel := item.as_kernel(times)) is not None:
            return Spent(count * kernel)
        return sum((spent(times, part, count) for part in item.parts), Spent())
    price = count * item.price(times)
    return Spent(price) if item.kind is not None else Spent(computation_ps=price)
