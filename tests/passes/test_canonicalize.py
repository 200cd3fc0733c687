"""What case files cannot state of the pass: strides, every kind, waits of their own."""

from __future__ import annotations

from compiler.check import Verdict, check
from compiler.ir.text import print_graph
from passes import Canonicalize
from tests.support.graphs import Builder, Mesh, aten, function

X = '%0 "x": f64[4, 8] {tp: V}'
AR = "comm.all_reduce(%0) {axis = tp, op = sum}"


def test_keeps_a_copy_into_other_strides() -> None:
    build = Builder(Mesh({"tp": 2}))
    x, d = build.input("x", 4, 4), build.input("d", 4, 4)
    turned = build.call(aten.permute.default, d, [1, 0])
    graph = build.finish(build.call(aten.copy.default, turned, x))
    copied = next(n for n in graph.graph.nodes if n.target is aten.copy.default)
    assert copied.meta["val"].stride() == (1, 4)
    assert not Canonicalize().apply(graph).changed


def test_removes_all_reduces_over_one_rank() -> None:
    for op in ("sum", "avg", "max", "min", "product"):
        graph = function(
            '%0 "x": f64[4] {tp: V}',
            f"%1: f64[4] = comm.all_reduce(%0) {{axis = one, op = {op}}}",
            "%2: f64[4] = aten.neg(%1)",
            "return %2",
            mesh="mesh <tp = 4, one = 1>",
        )
        result = Canonicalize().apply(graph)
        assert [str(r) for r in result.remarks] == [
            "passed: %v1: all_reduce over groups of one rank removed"
        ]
        assert check(graph, result.graph).verdict is Verdict.EQUIVALENT


def test_a_collective_is_waited_for_once() -> None:
    source = function(
        X,
        "%1: f64[4, 8] = comm.all_reduce_start(%0) {axis = tp, op = sum}",
        "%2: f64[4, 8] = comm.wait(%1)",
        "%3: f64[4, 8] = aten.silu(%2)",
        "%4: f64[4, 8] = comm.wait(%1)",
        "return %3, %4",
    )
    found = Canonicalize().apply(source)
    assert (found.changed, found.remarks) == (True, ())
    assert check(source, found.graph).verdict is Verdict.EQUIVALENT
    one = function(X, f"%1: f64[4, 8] = {AR}", "%2: f64[4, 8] = aten.silu(%1)", "return %2, %1")
    assert print_graph(found.graph) == print_graph(one)
