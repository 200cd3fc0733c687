"""What an error says."""

from __future__ import annotations

import pytest

from compiler import errors
from compiler.errors import CommPlanError


def test_lines_that_say_nothing_are_left_out() -> None:
    full = CommPlanError("wrong", where="here", found="1, not 2", remedy="do this")
    assert str(full) == "wrong\n  where: here\n  found: 1, not 2\n  remedy: do this"
    assert (full.what, full.where, full.found, full.remedy) == (
        "wrong", "here", "1, not 2", "do this"
    )  # fmt: skip
    assert str(CommPlanError("wrong", remedy="do this")) == "wrong\n  remedy: do this"
    assert str(CommPlanError("wrong")) == "wrong"


@pytest.mark.parametrize("name", ["Mesh", "Placement", "Capture", "Graph", "Plan", "Verification"])
def test_every_error_is_one_that_the_command_line_prints(name: str) -> None:
    with pytest.raises(CommPlanError, match=r"^wrong$"):
        raise getattr(errors, f"{name}Error")("wrong")
