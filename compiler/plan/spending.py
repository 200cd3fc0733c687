"""What a graph takes on a machine: its collectives and kernels, one after the other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx

from compiler.ir import access
from compiler.ir.collectives import OPS, WAIT, Kind, collective
from compiler.ir.graph import SpmdGraph
from compiler.ir.row_ops import ALL_SLICE, PAD_ROWS
from compiler.plan.prices import CostTerm, Times


@dataclass(frozen=True)
class PredictedTime:
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

    def __add__(self, other: PredictedTime) -> PredictedTime:
        return PredictedTime(
            self.communication_ps + other.communication_ps,
            self.computation_ps + other.computation_ps,
        )


@dataclass(frozen=True)
class Totals:
    """What a graph takes on a machine for some number of tokens, in picoseconds on one rank.

    Attributes:
        tokens: how many; None: as many as the graph was made with.
        as_written: as the author wrote it.
        merged: with reductions merged, and no more rows shared than costs nothing.
        planned: as planned.
        bound: no plan with the same reductions takes less; None if the machine does not state
            the rate of its links.
    """

    tokens: int | None
    as_written: int
    merged: int
    planned: int
    bound: int | None


def cost_terms_of(graph: SpmdGraph, nodes: Iterable[fx.Node]) -> list[CostTerm]:
    """Return the cost terms of ``nodes`` as they stand in ``graph``."""
    terms = []
    for node in nodes:
        called = collective(node) if node.target is WAIT else None
        if called is not None:
            operand_is_larger = called.kind is Kind.REDUCE_SCATTER
            payload = called.operand if operand_is_larger else node
            terms.append(CostTerm(payload, called.kind, graph.mesh.group(called.group)))
        elif node.target is PAD_ROWS:
            (x,), ranks = access.operands(node), int(access.arguments(node)["multiple"])
            terms.append(CostTerm(x, shares=ranks, pads=True))
        elif node.target not in OPS and node.target is not ALL_SLICE:  # a view
            terms.append(CostTerm(node))
    return terms


def predicted_time(times: Times, term: CostTerm) -> PredictedTime:
    """Return what ``term`` takes."""
    if term.fused is not None:
        if (kernel := term.kernel_cost(times)) is not None:
            return PredictedTime(kernel)
        return sum((predicted_time(times, part) for part in term.parts), PredictedTime())
    cost = term.cost(times)
    return PredictedTime(cost) if term.kind is not None else PredictedTime(computation_ps=cost)
