"""The before/after cases in ``*.spmd`` files beside this one, on the real passes and checker."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from compiler.ir.collectives import collectives
from compiler.ir.graph import SpmdGraph
from compiler.ir.remark import PassResult
from passes import LOWERING, PLANNING, DispatchRows, FuseReduceNorm, RegroupSums
from tests.passes.assigned import AssignedReductions, AssignedRows
from tests.support.case_files import Case, all_cases
from tests.support.case_runner import Runner, checked_in_lockstep

HERE = Path(__file__).parent
PASSES = tuple(dict.fromkeys((*PLANNING, *LOWERING)))


@dataclass(frozen=True)
class DispatchAll:
    """dispatch-rows by a plan that chose every reduction of a graph."""

    name: ClassVar[str] = DispatchRows.name

    def apply(self, graph: SpmdGraph) -> PassResult:
        sums = frozenset(c.result for _, c in collectives(graph.graph) if c.op and c.result)
        return DispatchRows(sums).apply(graph)


def why_far(group: str, _: object) -> str | None:
    """Why a group has no workspace: that of the axis ``far``."""
    return "its ranks are far apart" if group == "far" else None


REGISTRY = {
    **{listed.name: listed for listed in PASSES},
    "dispatch-rows": DispatchAll,
    "fuse-reduce-norm": lambda: FuseReduceNorm(why_far),
    "regroup-sums": lambda allow_dtype_widening="off": RegroupSums(allow_dtype_widening == "on"),
    "place-reductions": AssignedReductions,
    "shard-rows": AssignedRows,
}


@pytest.mark.parametrize("case", all_cases(HERE), ids=str)
def test_case(case: Case, update_cases: bool) -> None:
    Runner(REGISTRY, check=checked_in_lockstep).run(case, update_cases)


@pytest.mark.parametrize("listed", PASSES, ids=lambda listed: listed.name)
def test_a_pass_has_one_name_for_its_file_class_and_cases(listed: type) -> None:
    module = listed.name.replace("-", "_")
    assert listed.__module__ == "passes." + module
    assert listed.__name__ == listed.name.replace("-", " ").title().replace(" ", "")
    assert f"// PASS: {listed.name}" in (HERE / f"{module}.spmd").read_text().splitlines()[0]
