"""The before/after cases in ``*.spmd`` files beside this one, on the real passes and checker."""

from __future__ import annotations

from pathlib import Path

import pytest

from passes import PASSES, RegroupSums
from tests.passes.assigned import AssignedReductions, AssignedRows
from tests.support.case_files import Case, all_cases
from tests.support.case_runner import Runner, checked_in_lockstep

HERE = Path(__file__).parent
REGISTRY = {
    **{listed.name: listed for listed in PASSES},
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
