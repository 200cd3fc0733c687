"""A graph made by hand, optimized for the placements it was made with."""

from __future__ import annotations

from compiler.ir.graph import SpmdGraph
from compiler.optimize import OptimizationResult, optimize_graph
from tests.support.graphs import inputs_of


def optimized(graph: SpmdGraph, **options: object) -> OptimizationResult:
    return optimize_graph(
        graph.module,
        mesh=graph.mesh,
        inputs=inputs_of(graph),
        **options,  # type: ignore[arg-type]
    )
