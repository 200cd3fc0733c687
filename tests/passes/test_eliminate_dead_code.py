"""What case files cannot state of the pass: ops without a result."""

from __future__ import annotations

from passes import EliminateDeadCode
from tests.support.graphs import Builder, Mesh, aten


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
