"""Small graphs to compare, and verdicts that must hold what they say."""

from __future__ import annotations

import pytest

from compiler.check import Report, Verdict, check
from compiler.check.simulate import draw_inputs, simulate
from compiler.ir.graph import SpmdGraph
from tests.support.graphs import function

X = '%0 "x": f64[4] {tp: V}'
XY = '%0 "x": f64[4] {tp: V}, %1 "y": f64[4] {tp: V}'


def reduce(value: str, axis: str = "tp", op: str = "sum") -> str:
    return f"f64[4] = comm.all_reduce({value}) {{axis = {axis}, op = {op}}}"


SEPARATE = function(
    XY,
    f"%2: {reduce('%0')}",
    f"%3: {reduce('%1')}",
    "%4: f64[4] = aten.add.Tensor(%2, %3)",
    "return %4",
)


def verdict(source: SpmdGraph, target: SpmdGraph) -> Verdict:
    """The verdict; one that refutes must come with inputs that refute, again and again."""
    report = check(source, target)
    if report.verdict is Verdict.NOT_EQUIVALENT:
        assert refuted(source, target, report)
    return report.verdict


def refuted(source: SpmdGraph, target: SpmdGraph, report: Report) -> bool:
    """Whether the counterexample's seed alone leads to its difference."""
    found = report.counterexample
    assert found is not None
    drawn = draw_inputs(source, found.seed)
    want, got = (simulate(g, drawn, exact=True)[found.output][found.rank] for g in (source, target))
    gap = float((want - got).abs().max()) / max(float(want.abs().max()), 1e-3)
    return gap == pytest.approx(found.difference) and gap > 1e-6
