"""The before/after cases in ``*.spmd`` files beside this one, on the real passes and checker."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from compiler.check import check
from compiler.ir.collectives import collectives
from compiler.ir.graph import SpmdGraph
from compiler.ir.remark import PassResult
from compiler.ir.text import print_graph
from compiler.optimize.graph_api import optimize_spmd
from compiler.pipeline import Pipeline
from passes import (
    Canonicalize,
    DispatchRows,
    EliminateDeadCode,
    FuseReduceNorm,
    RegroupSums,
    ScheduleCollectives,
    UnshardRows,
)
from tests.support.case_files import Case, all_cases
from tests.support.case_runner import Runner
from tests.support.graphs import agree


@dataclass(frozen=True)
class PlacedReductions:
    """place-reductions by the plan of every reduction of a graph, as the optimizer runs it.

    ``policy``, ``widen`` and ``join`` are options of the optimizer, as text.
    """

    name: ClassVar[str] = "place-reductions"
    policy: str = "cost"
    widen: str = "off"
    join: str = "on"

    def apply(self, graph: SpmdGraph) -> PassResult:
        result = optimize_spmd(
            graph,
            policy=self.policy,
            verify=False,
            tokens=None,
            pipeline=Pipeline(),
            widen=self.widen == "on",
            join=self.join == "on",
        )
        remarks = tuple(remark for record in result.records for remark in record.remarks)
        # unshard-rows and shard-rows may undo each other
        changed = print_graph(result.spmd) != print_graph(graph)
        assert not changed or any(record.changed for record in result.records)
        return PassResult(result.spmd, remarks, changed)


@dataclass(frozen=True)
class DispatchAll:
    """dispatch-rows by a plan that chose every reduction of a graph."""

    name: ClassVar[str] = DispatchRows.name

    def apply(self, graph: SpmdGraph) -> PassResult:
        sums = frozenset(c.result for _, c in collectives(graph.graph) if c.op and c.result)
        return DispatchRows(sums).apply(graph)


def checked(source: SpmdGraph, target: SpmdGraph) -> tuple[str, str]:
    """The checker's verdict, which ranks in lockstep must confirm."""
    report = check(source, target)
    if report.verdict.runs and not agree(source, target):
        return "DISAGREE", f"in lockstep; the checker says {report.verdict}"
    return str(report.verdict), report.explanation


def why_far(group: str, _: object) -> str | None:
    """Why a group has no workspace: that of the axis ``far``."""
    return "its ranks are far apart" if group == "far" else None


REGISTRY = {
    "canonicalize": Canonicalize,
    "dispatch-rows": DispatchAll,
    "eliminate-dead-code": EliminateDeadCode,
    "fuse-reduce-norm": lambda: FuseReduceNorm(why_far),
    "place-reductions": PlacedReductions,
    "regroup-sums": RegroupSums,
    "schedule-collectives": ScheduleCollectives,
    "unshard-rows": UnshardRows,
}
CASES = all_cases(Path(__file__).parent)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case, update_cases: bool) -> None:
    Runner(REGISTRY, check=checked).run(case, update_cases)


def test_there_are_cases() -> None:
    assert len(CASES) > 60
