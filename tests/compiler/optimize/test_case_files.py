"""The before/after cases in ``optimize.spmd``: what several passes make of a graph together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from compiler.ir.graph import SpmdGraph
from compiler.ir.remark import PassResult
from compiler.ir.text import print_graph
from compiler.optimize import optimize
from compiler.plan.planner import Planner
from compiler.plan.planner_options import PlannerOptions
from tests.support.case_files import Case, all_cases
from tests.support.case_runner import Runner, checked_in_lockstep


@dataclass(frozen=True)
class Optimize:
    """All passes, as the optimizer plans them by payload bytes."""

    name: ClassVar[str] = "optimize"
    policy: str = "cost"

    def apply(self, graph: SpmdGraph) -> PassResult:
        planner = Planner(graph, PlannerOptions(self.policy))
        result = optimize(planner, planner.decide(None), verify=False)
        remarks = tuple(remark for record in result.records for remark in record.remarks)
        # unshard-rows and shard-rows may undo each other
        changed = print_graph(result.spmd) != print_graph(graph)
        assert not changed or any(record.changed for record in result.records)
        return PassResult(result.spmd, remarks, changed)


@pytest.mark.parametrize("case", all_cases(Path(__file__).parent), ids=str)
def test_case(case: Case, update_cases: bool) -> None:
    Runner({"optimize": Optimize}, check=checked_in_lockstep).run(case, update_cases)
