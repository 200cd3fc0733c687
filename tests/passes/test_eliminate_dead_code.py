"""What the pass removes and what must stay though nothing reads it."""

from __future__ import annotations

from compiler.check import Verdict, check
from compiler.ir.text import print_graph
from passes import EliminateDeadCode
from tests.support.graphs import Builder, Mesh, aten, function

X = '%0 "x": f64[4] {tp: V}'


def test_removes_what_nothing_reads_collectives_too() -> None:
    before = function(
        X,
        "%1: f64[4] = comm.all_reduce(%0) {axis = tp, op = sum}",
        "%2: f64[4] = aten.silu(%1)",
        "%3: f64[4] = aten.neg(%0)",
        "return %3",
    )
    text = print_graph(before)
    result = EliminateDeadCode().apply(before)
    assert result.changed
    assert print_graph(before) == text
    assert print_graph(result.graph) == print_graph(
        function(X, "%1: f64[4] = aten.neg(%0)", "return %1")
    )
    assert check(before, result.graph).verdict is Verdict.EQUIVALENT
    again = EliminateDeadCode().apply(result.graph)
    assert (again.changed, again.graph is result.graph, again.remarks) == (False, True, ())


def test_keeps_inputs_and_what_is_random() -> None:
    graph = function(
        X + ', %1 "unread": f64[4]',
        "%2: f64[4] = aten.rand_like(%0)",
        "%3: f64[4] = aten.neg(%0)",
        "return %3",
    )
    assert not EliminateDeadCode().apply(graph).changed


def test_removes_assertions_about_types_but_no_others() -> None:
    build = Builder(Mesh({"tp": 2}))
    x = build.input("x", 4)
    shape = build.call(aten.sym_size.int, x, 0)
    build.graph.call_function(aten._assert_tensor_metadata.default, (x,), {"dtype": None})
    build.graph.call_function(aten._assert_scalar.default, (shape, "positive"))
    graph = build.finish(build.call(aten.neg.default, x))
    result = EliminateDeadCode().apply(graph)
    kept = [str(n.target) for n in result.graph.graph.nodes if n.op == "call_function"]
    assert kept == ["aten.sym_size.int", "aten._assert_scalar.default", "aten.neg.default"]
