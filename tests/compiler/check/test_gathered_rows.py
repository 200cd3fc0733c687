"""Graphs that send rows, on either side; calls that send, return or read what they may not.

That a region must allow it is tested with ``tests/passes/dispatch_rows.spmd``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import fx

from compiler.check import Verdict, check
from compiler.check.gathered_rows import with_gathered_rows
from compiler.ir import access
from compiler.ir.dispatch import COMBINE_ROWS, DISPATCH_ROWS
from compiler.ir.graph import SpmdGraph
from compiler.ir.text import parse_graph
from tests.support.case_files import Case, full_text, read_cases

EVEN, PADDED = read_cases(Path(__file__).parents[2] / "passes/dispatch_rows.spmd")[:2]


def sides(case: Case = EVEN) -> tuple[SpmdGraph, SpmdGraph]:
    """All rows gathered, and rows sent."""
    assert case.before is not None
    assert case.after is not None
    before, after = (parse_graph(full_text(case, block)) for block in (case.before, case.after))
    return before, after


def call(graph: SpmdGraph, op: object) -> fx.Node:
    (node,) = graph.graph.find_nodes(op="call_function", target=op)
    return node


@pytest.mark.parametrize("case", [EVEN, PADDED], ids=str)
def test_either_side_may_send_rows(case: Case) -> None:
    gathered, sent = sides(case)
    assert check(gathered, sent).verdict is Verdict.EQUIVALENT
    assert check(sent, gathered).verdict is Verdict.EQUIVALENT
    assert with_gathered_rows(gathered) is gathered


def counted_from_the_end(dispatch: fx.Node, combine: fx.Node) -> None:
    rows = next(user for user in dispatch.users if access.projection(user) == 2)
    rows.args = (dispatch, -3)


def of_other_rows(dispatch: fx.Node, combine: fx.Node) -> None:
    combine.args = (combine.args[0], dispatch, *combine.args[2:])


def other_counts(dispatch: fx.Node, combine: fx.Node) -> None:
    combine.args = (*combine.args[:2], combine.args[1], *combine.args[3:])


def over_another_group(dispatch: fx.Node, combine: fx.Node) -> None:
    dispatch.args = (*dispatch.args[:-1], "tp")
    combine.args = (*combine.args[:-1], "pair")


def by_other_ids(dispatch: fx.Node, combine: fx.Node) -> None:
    dispatch.args = (dispatch.args[0], dispatch.args[0][0], *dispatch.args[2:])


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (counted_from_the_end, "reads where the rows of"),
        (of_other_rows, "does not send back what dispatch_rows sent"),
        (other_counts, "reads where the rows of"),
        (over_another_group, "are read beside"),
        (by_other_ids, "sends rows by other ids than ranks own"),
    ],
)
def test_refused(damage: Callable[[fx.Node, fx.Node], None], why: str) -> None:
    gathered, sent = sides()
    damage(call(sent, DISPATCH_ROWS), call(sent, COMBINE_ROWS))
    report = check(gathered, sent)
    assert report.verdict is Verdict.UNPROVED
    assert why in report.explanation


def test_sizes_must_be_those_of_the_rows_received() -> None:
    gathered, sent = sides(PADDED)
    size = next(
        x for node in sent.graph.nodes if "view" in str(node.target)
        for x in node.all_input_nodes if not access.is_operand(x)
    )  # fmt: skip
    dispatch = call(sent, DISPATCH_ROWS)
    total = access.written_arguments(dispatch)["total"]
    size.replace_all_uses_with(total)
    report = check(gathered, sent)
    assert report.verdict is Verdict.UNPROVED
    assert "a number of other rows" in report.explanation


def test_rows_that_nobody_sends_back() -> None:
    gathered, sent = sides()
    combine = call(sent, COMBINE_ROWS)
    x = access.node_of(sent.graph, "placeholder")[0]
    combine.replace_all_uses_with(x)
    sent.graph.erase_node(combine)
    report = check(gathered, sent)
    assert report.verdict is Verdict.UNPROVED
    assert "rows are sent that nobody sends back" in report.explanation
