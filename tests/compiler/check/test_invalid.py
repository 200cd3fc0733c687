"""What cannot be compared, and what is said about it."""

from __future__ import annotations

import operator

import pytest

from compiler.check import Verdict, check
from compiler.ir.collectives import WAIT
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import Mesh
from compiler.optimize import check_equivalence
from tests.compiler.check.verdicts import XY, X, reduce
from tests.support.graphs import Builder, aten, c10d, function


def in_place(target: object) -> SpmdGraph:
    build = Builder(Mesh({"tp": 4}))
    x = build.input("x", 4)
    y = build.call(aten.neg.default, x)
    node = build.graph.call_function(target, (y, 0, 1.0) if target is operator.setitem else (y, x))  # type: ignore[arg-type]
    node.meta["val"] = y.meta["val"]
    return build.finish(y)


def starts_only() -> SpmdGraph:
    return function(
        X,
        "%1: f64[4] = comm.all_reduce_start(%0) {axis = tp, op = sum}",
        "%2: f64[4] = aten.neg(%1)",
        "%3: f64[4] = comm.wait(%1)",
        "return %2, %3",
    )


@pytest.mark.parametrize(
    ("target", "explanation"),
    [
        pytest.param(
            in_place(aten.add_.Tensor),
            "target: op aten.add_.Tensor of value %add__tensor mutates its operand\n"
            "  remedy: functionalize: pass the ExportedProgram itself, whose written tensors are "
            "outputs, not its .module()",
            id="op that mutates",
        ),
        pytest.param(
            in_place(operator.setitem),
            "target: op operator.setitem of value %setitem mutates its operand\n"
            "  remedy: functionalize: pass the ExportedProgram itself, whose written tensors are "
            "outputs, not its .module()",
            id="assignment to a slice",
        ),
        pytest.param(
            starts_only(),
            "target: %v2 uses collective %v1 before its wait_tensor\n"
            "  remedy: wait for the collective first",
            id="use before wait",
        ),
        pytest.param(
            function(XY, "return %0"),
            "source has 1 placeholders, target has 2",
            id="number of inputs",
        ),
        pytest.param(
            function(X, "return %0, %0"),
            "source has 1 outputs, target has 2",
            id="number of outputs",
        ),
        pytest.param(
            function('%0 "x": f64[5] {tp: V}', "return %0"),
            "placeholder 0 is float64[4] in the source and float64[5] in the target",
            id="shape of an input",
        ),
        pytest.param(
            function(X, "%1: f32[4] = aten._to_copy(%0, dtype = f32)", "return %1"),
            "output 0 is float64[4] in the source and float32[4] in the target",
            id="element type of an output",
        ),
        pytest.param(
            function(X, "return (%0,)"),
            "source returns %, target returns (%,)",
            id="nesting of outputs",
        ),
        pytest.param(
            function(X, "return %0", mesh="mesh <tp = 2>"),
            "the meshes differ: source Mesh({'tp': 4}), target Mesh({'tp': 2})",
            id="mesh",
        ),
    ],
)  # fmt: skip
def test_invalid(target: SpmdGraph, explanation: str) -> None:
    report = check(function(X, "return %0"), target)
    assert (report.verdict, report.explanation) == (Verdict.INVALID, explanation)
    assert not report.verdict.runs


def test_constants_and_sizes_that_are_returned_are_compared() -> None:
    mesh = "mesh <tp = 4>\nsym s0 in [2, 64]\nsym s1 in [2, 64]"
    inputs = '%0 "x": f64[s0, 4], %1 "y": f64[s1, 4]'
    sizes = [
        function(inputs, f"%2: sym({s}) = aten.sym_size.int(%{i}, 0)", "return %0, %2", mesh=mesh)
        for i, s in enumerate(("s0", "s1"))
    ]
    numbers = [function(X, f"return %0, {number}") for number in (3, 4)]
    found = [check(*sizes), check(*numbers)]
    assert [(r.verdict, r.explanation) for r in found] == [
        (Verdict.INVALID, "output 1 is size size0 in the source and size size1 in the target"),
        (Verdict.INVALID, "source returns (%, 3), target returns (%, 4)"),
    ]


def test_graph_that_cannot_be_read_is_invalid() -> None:
    build = Builder(Mesh({"tp": 4}))
    x = build.input("x", 4)
    node = build.graph.call_method("neg", (x,))
    node.meta["val"] = x.meta["val"]
    report = check(function(X, "%1: f64[4] = aten.neg(%0)", "return (%1,)"), build.finish(node))
    assert (report.verdict, report.explanation) == (
        Verdict.INVALID,
        "target: %neg is a call_method node\n"
        "  where: %neg : [num_users=1] = call_method[target=neg](args = (%x,), kwargs = {})\n"
        "  remedy: capture to ATen ops, for example with torch.export",
    )


def test_group_the_mesh_does_not_know_is_a_verdict() -> None:
    known = function(X, f"%1: {reduce('%0')}", "return %1")
    other = Builder(Mesh({"tp": 4, "pp": 1}))
    unknown = other.finish(other.all_reduce(other.input("x", 4, varies=("tp",)), "pp"))
    report = check_equivalence(known.module, unknown.module, mesh=known.mesh)
    assert (report.verdict, report.explanation) == (
        Verdict.INVALID,
        "target: group name 'pp' does not resolve\n"
        "  found: the mesh knows ['tp']\n"
        "  remedy: name its ranks, for example those of an axis: "
        "Mesh(…, groups={'pp': 'tp'}), or --group pp=tp",
    )


def coalesced(*, waits: bool) -> SpmdGraph:
    build = Builder(Mesh({"tp": 4}))
    x = build.input("x", 4)
    several = build.graph.call_function(c10d.all_reduce_coalesced.default, ([x], "sum", "tp"))
    several.meta["val"] = [x.meta["val"]]
    one = build.call(operator.getitem, several, 0)
    return build.finish(build.call(aten.neg.default, build.call(WAIT, one) if waits else one))


def test_one_of_several_that_one_collective_started_must_be_waited_for() -> None:
    report = check(coalesced(waits=True), coalesced(waits=False))
    assert (report.verdict, report.explanation) == (
        Verdict.INVALID,
        "target: %neg_default uses collective %all_reduce_default before its wait_tensor"
        "\n  remedy: wait for the collective first",
    )
    assert check(coalesced(waits=True), coalesced(waits=True)).verdict is Verdict.IDENTICAL


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("%1: f64[8] = comm.all_gather(%0) {axis = tp, group_size = 2}",
         "it states 2 ranks, its group has 4"),
        ("%1: f64[4] = comm.broadcast(%0) {axis = tp, src = 4}", "it names rank 4 of a group of 4"),
        ("%1: f64[1] = comm.reduce_scatter(%0) {axis = tp, op = sum}",
         "it scatters 6 rows over 4 ranks"),
    ],
)  # fmt: skip
def test_numbers_that_do_not_fit_the_group(line: str, found: str) -> None:
    rows = 6 if "scatters" in found else 4
    graph = function(f'%0 "x": f64[{rows}] {{tp: V}}', line, "return %1")
    report = check(graph, graph.own_copy())
    assert report.verdict is Verdict.INVALID
    assert report.explanation.startswith("source: collective %v1")
    assert "does not fit its group\n  where: %v1" in report.explanation
    assert report.explanation.endswith(
        f"found: {found}\n  remedy: pass the mesh that the graph was made for"
    )
