"""Which forms of carriers are read, for labels that place reductions early, late and nowhere."""

from __future__ import annotations

import pytest

from compiler.analysis.partial_forms import Labels, readers
from compiler.analysis.partial_values import carriers
from compiler.analysis.reductions import facts, reductions
from compiler.ir.graph import SpmdGraph
from tests.support.graphs import function

SUM = "{axis = tp, op = sum}"
MEET = function(
    '%0 "x": f64[4] {tp: V}, %1 "y": f64[4] {tp: V}',
    f"%2: f64[4] = comm.all_reduce(%0) {SUM}",
    f"%3: f64[4] = comm.all_reduce(%1) {SUM}",
    "%4: f64[4] = aten.add.Tensor(%2, %3)",
    "%5: f64[4] = aten.silu(%4)",
    "return %5",
)


def labels_of(graph: SpmdGraph, unreduced: str) -> Labels:
    """The labels by which the named values run unreduced."""
    known = facts(graph, reductions(graph)[0])
    found = carriers(graph, known)
    return Labels(known, found, frozenset(n for n in found if n.name in unreduced.split()))


def read(graph: SpmdGraph, unreduced: str) -> tuple[str, str]:
    """Names of what is read unreduced, and reduced, in graph order."""
    labels = labels_of(graph, unreduced)
    assert labels.misfit() == ""
    forms, order = labels.forms_read(), list(graph.graph.nodes)
    first, second = (
        " ".join(n.name for n in sorted(held, key=order.index))
        for held in (forms.unreduced, forms.reduced)
    )
    return first, second


def test_readers() -> None:
    found = labels_of(MEET, "")

    def of(name: str) -> tuple[list[str], bool]:
        (node,) = (n for n in MEET.graph.nodes if n.name == name)
        known = readers(node, found.found, found.known)
        return [n.name for n in known.linear], known.others

    assert of("x") == (["v2"], False)
    assert of("v2") == (["v4"], False)
    assert of("v4") == ([], True)


def test_what_is_no_carrier_reads_an_addend_as_it_is() -> None:
    graph = function(
        '%0 "x": f64[4] {tp: V}',
        f"%1: f64[4] = comm.all_reduce(%0) {SUM}",
        "%2: f64[4] = aten.silu(%0)",
        "return %1, %2",
    )
    labels = labels_of(graph, "x v1")
    x, *_ = labels.found
    assert not labels.demanded(x)
    assert read(graph, "x v1") == ("x v1", "v1")


def test_sums_that_meet_unreduced_are_read_reduced_where_they_met() -> None:
    assert read(MEET, "x y v2 v3 v4") == ("x y v2 v3 v4", "v4")
    assert read(MEET, "x y v2 v3") == ("x y v2 v3", "v2 v3 v4")


@pytest.mark.parametrize(
    ("unreduced", "demanded"), [("x y v2 v3 v4", "v4"), ("x y v2 v3", "v2 v3 v4")]
)
def test_reduced_forms_are_demanded_by_what_does_not_run_unreduced(
    unreduced: str, demanded: str
) -> None:
    labels = labels_of(MEET, unreduced)
    assert [n.name for n in labels.found if labels.demanded(n)] == demanded.split()


def test_hoisted_reductions_read_addends_of_which_inputs_stay() -> None:
    graph = function(
        '%0 "x": f64[1, 4] {tp: V}',
        "%1: f64[2, 4] = aten.expand(%0, [2, 4])",
        f"%2: f64[2, 4] = comm.all_reduce(%1) {SUM}",
        "return %2",
    )
    assert read(graph, "x v1 v2") == ("x v1 v2", "v2")
    assert read(graph, "x") == ("x", "x v1 v2")


def test_what_reads_the_shape_takes_the_unreduced_form() -> None:
    graph = function(
        '%0 "x": f64[s0, 4] {tp: V}',
        f"%1: f64[s0, 4] = comm.all_reduce(%0) {SUM}",
        "%2: sym(s0) = aten.sym_size.int(%1, 0)",
        "return %2",
        mesh="mesh <tp = 4>\nsym s0 in [2, 64]",
    )
    assert read(graph, "x v1") == ("x v1", "")


def test_a_joint_all_reduce_takes_the_unreduced_form_if_nobody_else_reads_the_reduced_one() -> None:
    def graph(returned: str) -> SpmdGraph:
        return function(
            '%0 "x": f64[4] {dp: V, tp: V}',
            f"%1: f64[4] = comm.all_reduce(%0) {SUM}",
            "%2: f64[4] = comm.all_reduce(%1) {axis = dp, op = sum}",
            returned,
            mesh="mesh <dp = 2, tp = 2>",
        )

    alone, shared = graph("return %2"), graph("return %2, %1")
    assert {n.name for n in labels_of(alone, "x v1").joint} == {"v2_start"}
    assert read(alone, "x v1") == ("x v1", "")
    assert labels_of(shared, "x v1").joint == frozenset()
    assert read(shared, "x v1") == ("x v1", "v1")


@pytest.mark.parametrize(
    ("unreduced", "why"),
    [
        ("y", "%x exists unreduced only"),
        ("x y v2 v4", "%v4 is to run unreduced on a reduced operand"),
        ("x y", ""),
        ("x y v2 v3 v4", ""),
    ],
)
def test_labels_that_are_no_placement(unreduced: str, why: str) -> None:
    assert labels_of(MEET, unreduced).misfit() == why
