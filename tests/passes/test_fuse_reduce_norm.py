"""What case files cannot say of fuse-reduce-norm."""

import torch

from compiler.check import Verdict, check
from compiler.ir import access
from compiler.ir.fused_ops import ALL_REDUCE_NORM
from compiler.ir.mesh import Mesh
from passes import EliminateDeadCode, FuseReduceNorm
from tests.support.graphs import Builder, function

aten = torch.ops.aten
FUSE = FuseReduceNorm(lambda *_: None)


def test_a_sum_that_nothing_waits_for() -> None:
    graph = function(
        '%0 "x": f32[8, 16] {tp: V}',
        "%1: f32[8, 16] = comm.all_reduce_start(%0) {axis = tp, op = sum}",
        "return %0",
    )
    result = FUSE.apply(graph)
    assert not result.changed
    assert "nothing waits for it" in result.remarks[0].reason


def test_a_weight_that_is_read_behind_the_addition() -> None:
    build = Builder(Mesh({"tp": 4}), {"weight": torch.ones(16)})
    x = build.input("x", 8, 16, varies=["tp"], dtype=torch.float32)
    residual = build.input("r", 8, 16, dtype=torch.float32)
    h = build.call(aten.add.Tensor, build.all_reduce(x, "tp"), residual)
    weight = build.attribute("weight")
    graph = build.finish(build.call(aten.rms_norm.default, h, [16], weight, 1e-6))
    result = EliminateDeadCode().apply(FUSE.apply(graph).graph)
    (call,) = result.graph.graph.find_nodes(op="call_function", target=ALL_REDUCE_NORM)
    assert [n.target for n in access.operands(call)] == ["x", "r", "weight"]
    assert check(graph, result.graph).verdict is Verdict.EQUIVALENT
