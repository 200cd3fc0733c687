"""What looks like a collective, and nobody knows, is never passed over in silence."""

from __future__ import annotations

import pytest

from compiler import OpaqueOp, lint, optimize_graph, register_ops
from compiler.ir.dialects import unknown_collectives
from compiler.ir.text import print_graph
from tests.support import foreign_ops
from tests.support.graphs import function

X = '%0 "x": f64[4, 8] {tp: V}'
CALL = '%1: f64[4, 8] = foreign.fused_allreduce(%0, "c")'
assert foreign_ops


def test_lint_and_optimize_say_so() -> None:
    graph = function(X, CALL, "return %1")
    (finding,) = lint(graph)
    assert (finding.rule, finding.severity) == ("unknown-collective", "warning")
    assert 'register_ops({"foreign::fused_allreduce": …})' in finding.remedy
    result = optimize_graph(graph.module, mesh=graph.mesh)
    (remark,) = (x for x in result.remarks if "looks like" in x.reason)
    assert "foreign.fused_allreduce.default looks like a collective by its name" in remark.reason


def test_not_of_what_is_declared() -> None:
    register_ops({"foreign::fused_allreduce": OpaqueOp("t h -> t h")})
    assert not lint(function(X, CALL, "return %1"))


@pytest.mark.parametrize(
    "line",
    [
        "%1: f64[4, 8] = comm.all_reduce(%0) {axis = tp, op = sum}",
        '%1: f64[4, 8] = vllm.all_reduce(%0, "tp")',
        "%1: f64[4, 8] = aten.expand(%0, [4, 8])",
    ],
)
def test_not_of_what_is_known(line: str) -> None:
    graph = function(X, line, "return %1")
    assert not list(unknown_collectives(graph.graph)), print_graph(graph)
