"""What lint finds in a short graph."""

from __future__ import annotations

from collections.abc import Sequence

from compiler.linter import findings
from tests.support.graphs import function


def rules_of(lines: Sequence[str]) -> list[str]:
    """Rules of the findings, on 4 ranks: along tp, or o and i where the inputs name o."""
    mesh = "mesh <o = 2, i = 2>" if "{o:" in lines[0] else "mesh <tp = 4>"
    return [one.rule for one in findings(function(*lines, mesh=mesh))]
