"""Which rewrite is at fault, where a graph is not proved or computes something else: bisected.

The passes of a pipeline leave a graph each. Given what tells a right graph from a wrong one, the
first pass whose graph is wrong is found in as many looks as the number of passes has bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from compiler.check import Report, check
from compiler.check.simulate import draw_inputs, simulate
from compiler.ir.graph import SpmdGraph
from compiler.ir.remark import Remark, RemarkKind
from compiler.optimize.optimizer import optimize
from compiler.pipeline import PassRecord, Pipeline, first_wrong
from compiler.plan.planner import Planner
from compiler.plan.planner_options import PlannerOptions
from compiler.runtime.lowering import run_passes

IsRight = Callable[[SpmdGraph], bool]
SEEDS = (0, 1, 2)
TOLERANCE = 1e-6
"""Of float64 on the same numbers: rounding does not explain more."""


@dataclass(frozen=True)
class Culprit:
    """The first rewrite whose graph is wrong.

    Attributes:
        record: its run.
        before: the graph that it got.
        report: the checker's on what it made of that.
    """

    record: PassRecord
    before: SpmdGraph
    report: Report

    @property
    def sites(self) -> tuple[Remark, ...]:
        """Where it rewrote the graph."""
        return tuple(r for r in self.record.remarks if r.kind is RemarkKind.PASSED)


def rewrites(graph: SpmdGraph, options: PlannerOptions) -> tuple[PassRecord, ...]:
    """Plan and lower a graph, as on ranks that can run every fused op, and prove nothing."""
    planner = Planner(graph, options)
    result = optimize(planner, planner.decide(None), verify=False)
    lowering = Pipeline(records=list(result.records))
    run_passes(result.spmd, lowering, why_unserved=lambda *_: None)
    return tuple(lowering.records)


def is_proved(source: SpmdGraph) -> IsRight:
    """Tell graphs that the checker calls equivalent to ``source``."""
    return lambda graph: check(source, graph).verdict.runs


def gives_the_same(source: SpmdGraph) -> IsRight:
    """Tell graphs that, run rank by rank on drawn inputs, give what ``source`` gives.

    The checker is not asked.
    """
    draws = [draw_inputs(source, seed) for seed in SEEDS]
    expected = [simulate(source, draw, exact=True) for draw in draws]

    def is_same(graph: SpmdGraph) -> bool:
        return all(
            torch.allclose(x, y, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
            for draw, outputs in zip(draws, expected, strict=True)
            for output, other in zip(outputs, simulate(graph, draw, exact=True), strict=True)
            for x, y in zip(output, other, strict=True)
        )

    return is_same


def culprit(source: SpmdGraph, records: Sequence[PassRecord], is_right: IsRight) -> Culprit | None:
    """Return the first rewrite whose graph is wrong; None if the graph after all is right."""
    if not records or is_right(records[-1].graph):
        return None
    at = first_wrong(records, is_right)
    before = records[at - 1].graph if at else source
    return Culprit(records[at], before, check(before, records[at].graph))
