"""Which forms are read, for assignments that place reductions early, late and nowhere."""

from __future__ import annotations

import pytest

from compiler.analysis.partial_forms import PartialAssignment, readers
from compiler.analysis.reductions import reduction_facts, reductions
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


def assigned(graph: SpmdGraph, partial: str) -> PartialAssignment:
    """The assignment by which the named values are Partial."""
    facts = reduction_facts(graph, reductions(graph)[0])
    names = partial.split()
    return PartialAssignment(facts, frozenset(n for n in graph.graph.nodes if n.name in names))


def read(graph: SpmdGraph, partial: str) -> tuple[str, str]:
    """Names of what is read Partial, and Replicate, in graph order."""
    assignment = assigned(graph, partial)
    assert assignment.misfit() == ""
    first, second = (" ".join(n.name for n in sorted(x)) for x in assignment.forms_read())
    return first, second


def test_readers() -> None:
    every = readers(assigned(MEET, "").facts)

    def of(name: str) -> tuple[list[str], bool]:
        (reads,) = (reads for node, reads in every.items() if node.name == name)
        return [n.name for n in reads.linear], reads.others

    assert of("x") == (["v2"], False)
    assert of("v2") == (["v4"], False)
    assert of("v4") == ([], True)


def test_what_is_not_assigned_reads_an_addend_as_it_is() -> None:
    graph = function(
        '%0 "x": f64[4] {tp: V}',
        f"%1: f64[4] = comm.all_reduce(%0) {SUM}",
        "%2: f64[4] = aten.silu(%0)",
        "return %1, %2",
    )
    assignment = assigned(graph, "x v1")
    x, *_ = assignment.values
    assert not assignment.demanded(x)
    assert read(graph, "x v1") == ("x v1", "v1")


def test_sums_that_meet_partial_are_read_reduced_where_they_met() -> None:
    assert read(MEET, "x y v2 v3 v4") == ("x y v2 v3 v4", "v4")
    assert read(MEET, "x y v2 v3") == ("x y v2 v3", "v2 v3 v4")


@pytest.mark.parametrize(
    ("partial", "demanded"), [("x y v2 v3 v4", "v4"), ("x y v2 v3", "v2 v3 v4")]
)
def test_reduced_forms_are_demanded_by_what_is_not_partial(partial: str, demanded: str) -> None:
    assignment = assigned(MEET, partial)
    assert [n.name for n in assignment.values if assignment.demanded(n)] == demanded.split()


def test_hoisted_reductions_read_addends_of_which_inputs_stay() -> None:
    graph = function(
        '%0 "x": f64[1, 4] {tp: V}',
        "%1: f64[2, 4] = aten.expand(%0, [2, 4])",
        f"%2: f64[2, 4] = comm.all_reduce(%1) {SUM}",
        "return %2",
    )
    assert read(graph, "x v1 v2") == ("x v1 v2", "v2")
    assert read(graph, "x") == ("x", "x v1 v2")


def test_what_reads_the_shape_takes_the_partial_form() -> None:
    graph = function(
        '%0 "x": f64[s0, 4] {tp: V}',
        f"%1: f64[s0, 4] = comm.all_reduce(%0) {SUM}",
        "%2: sym(s0) = aten.sym_size.int(%1, 0)",
        "return %2",
        mesh="mesh <tp = 4>\nsym s0 in [2, 64]",
    )
    assert read(graph, "x v1") == ("x v1", "")


def test_a_joint_all_reduce_takes_the_partial_form_if_nobody_else_reads_the_reduced_one() -> None:
    def graph(returned: str) -> SpmdGraph:
        return function(
            '%0 "x": f64[4] {dp: V, tp: V}',
            f"%1: f64[4] = comm.all_reduce(%0) {SUM}",
            "%2: f64[4] = comm.all_reduce(%1) {axis = dp, op = sum}",
            returned,
            mesh="mesh <dp = 2, tp = 2>",
        )

    alone, shared = graph("return %2"), graph("return %2, %1")
    assert {n.name for n in assigned(alone, "x v1").joint} == {"v2_start"}
    assert read(alone, "x v1") == ("x v1", "")
    assert assigned(shared, "x v1").joint == frozenset()
    assert read(shared, "x v1") == ("x v1", "v1")


@pytest.mark.parametrize(
    ("partial", "why"),
    [
        ("y", "%x is Partial in the graph, and cannot be reduced earlier"),
        ("x y v2 v4", "%v4 is to be Partial, but reads a Replicate operand"),
        ("x y v5", "%v5 is not a partial sum"),
        ("x y", ""),
        ("x y v2 v3 v4", ""),
    ],
)
def test_assignments_that_no_graph_can_compute(partial: str, why: str) -> None:
    assert assigned(MEET, partial).misfit() == why
