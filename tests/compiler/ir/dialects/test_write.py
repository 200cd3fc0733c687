"""Graphs written in the dialect of their source: what is there still, and what a rewrite made."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import torch.distributed as dist

from compiler import (
    Mesh,
    OptimizationResult,
    Shard,
    Varying,
    Verdict,
    check_equivalence,
    optimize_graph,
)
from tests.support import foreign_ops

vllm, RMS = torch.ops.vllm, torch.ops.vllm_ir.rms_norm
ROWS = torch.export.Dim.DYNAMIC


def mlp(h: Any, w: Any) -> Any:
    """This rank's part of a product, summed over what is between two weights."""
    return torch.nn.functional.silu(h @ w) @ w.t()


class Layers(torch.nn.Module):
    """A dense layer, a sparse one whose two sums are reduced apart, and a norm behind both."""

    def __init__(self, group: str = "tp:0") -> None:
        super().__init__()
        self.group = group

    def forward(self, x: Any, weight: Any, dense: Any, routed: Any, shared: Any) -> Any:
        x = x + vllm.all_reduce(mlp(RMS(x, weight, 1e-6), dense), self.group)
        h = RMS(x, weight, 1e-6)
        sums = [vllm.all_reduce(mlp(h, w), self.group) for w in (routed, shared)]
        return RMS(x + (sums[0] + sums[1]), weight, 1e-6)


def arguments(rank: int = 0, hidden: int = 16) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(rank)
    own = [torch.randn(hidden, hidden // 2, generator=generator) for _ in range(3)]
    return torch.linspace(-1, 1, 6 * hidden).reshape(6, hidden), torch.ones(hidden), *own


INPUTS = dict.fromkeys(("dense", "routed", "shared"), Varying())


def optimized(
    model: torch.nn.Module, mesh: Mesh, hidden: int = 16, **options: Any
) -> tuple[Any, OptimizationResult]:
    shapes, args = ({0: ROWS}, {}, {}, {}, {}), arguments(hidden=hidden)
    program = torch.export.export(model, args, dynamic_shapes=shapes, strict=False)
    module = program.run_decompositions({}).graph_module
    return module, optimize_graph(module, mesh=mesh, inputs=INPUTS, **options)


def proved(module: torch.fx.GraphModule, result: OptimizationResult) -> bool:
    report = check_equivalence(module, result.graph_module, mesh=MESH, inputs=INPUTS)
    return report.verdict is Verdict.EQUIVALENT


def ops(module: torch.fx.GraphModule) -> Counter[str]:
    targets = [str(node.target) for node in module.graph.nodes if node.op == "call_function"]
    return Counter(name for name in targets if not name.startswith(("aten", "_op", "<")))


MESH = Mesh({"tp": 4}, groups={"tp:0": "tp"})


def test_merged_reductions_are_calls_of_the_same_op() -> None:
    module, result = optimized(Layers(), MESH)
    assert ops(result.graph_module) == {"vllm.all_reduce.default": 2, "vllm_ir.rms_norm.default": 3}
    assert result.before.all_reduces == 3
    assert proved(module, result)


def test_ops_that_the_source_does_not_call_are_taken_from_its_dialect() -> None:
    """With rows shared between ranks: scatters and gathers."""
    module, result = optimized(Layers(), MESH, 1024, machine="h200x8", tokens=16384)
    written = ops(result.graph_module)
    assert written["vllm.reduce_scatter.default"] == result.after.counts["reduce_scatter"] > 0
    assert written["vllm.all_gather.default"] == result.after.counts["all_gather"] > 0
    assert not any(name.startswith("_c10d") for name in written)
    assert proved(module, result)


def test_a_reduction_in_place_is_written_through_auto_functionalized() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Any, left: Any, right: Any) -> Any:
            first, second = x @ left, x @ right
            torch.ops._C.shm_allreduce(7, first)
            torch.ops._C.shm_allreduce(7, second)
            return first + second

    x = torch.ones(4, 4)
    program = torch.export.export(Model(), (x, x, x), strict=False)
    module = program.run_decompositions({}).graph_module
    mesh, inputs = Mesh({"tp": 4}), {"left": Shard(0), "right": Shard(0)}
    result = optimize_graph(module, mesh=mesh, inputs=inputs)
    (call,) = (n for n in result.graph_module.graph.nodes if "auto_functionalized" in n.name)
    assert call.args == (torch.ops._C.shm_allreduce.default,)
    assert call.kwargs["handle"] == 7
    verdict = check_equivalence(module, result.graph_module, mesh=mesh, inputs=inputs).verdict
    assert verdict is Verdict.EQUIVALENT


def test_what_has_no_op_stays_a_functional_collective() -> None:
    """Of a reduction that no op of the dialect does."""

    class Model(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            c10d = torch.ops._c10d_functional
            peak = c10d.wait_tensor(c10d.all_reduce(x, "max", "tp:0"))
            return vllm.all_reduce(x, "tp:0"), peak

    program = torch.export.export(Model(), (torch.ones(4, 4),), strict=False)
    module = program.run_decompositions({}).graph_module
    result = optimize_graph(module, mesh=MESH, inputs={"x": Varying()})
    assert ops(result.graph_module) == {
        "vllm.all_reduce.default": 1,
        "_c10d_functional.all_reduce.default": 1,
        "_c10d_functional.wait_tensor.default": 1,
    }


def test_a_gather_whose_parts_are_read_elsewhere_is_not_done_twice() -> None:
    """A pass found equal movements in a gather along columns and in a scatter."""

    class Model(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            y = vllm.all_gather(x, -1, 4, "tp:0")
            return y, vllm.reduce_scatter(y, 1, 4, "tp:0")

    program = torch.export.export(Model(), (torch.ones(4, 4),), strict=False)
    module = program.run_decompositions({}).graph_module
    result = optimize_graph(module, mesh=MESH, inputs={"x": Varying()})
    written = ops(result.graph_module)
    assert written["vllm.all_gather.default"] == 1
    assert not any(name.startswith("_c10d") for name in written)


def on_a_rank(group: dist.ProcessGroup) -> dict[str, Any]:
    assert foreign_ops is not None  # its ops are installed
    name = str(group.group_name)
    model = Layers(name)
    mesh = Mesh({"tp": group.size()}, groups={name: "tp"})
    module, result = optimized(model, mesh)
    args = arguments(group.rank())
    with torch.no_grad():
        calls = (result.graph_module, result.bind({"tp": group}, group=group))
        outputs = [call(*args)[0] for call in calls]
        differences = [float((y - module(*args)[0]).abs().max()) for y in outputs]
    return {"ops": dict(ops(result.graph_module)), "differences": differences}


def test_it_runs_where_the_ops_do(gloo_pool: Any) -> None:
    for outcome in gloo_pool(2).run(on_a_rank):
        assert outcome["ops"] == {"vllm.all_reduce.default": 2, "vllm_ir.rms_norm.default": 3}
        assert max(outcome["differences"]) < 1e-5
