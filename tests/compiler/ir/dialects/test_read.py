"""Ops of others, read as what they are declared to do."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from compiler import CollectiveOp, ComposedOp, Mesh, register_ops
from compiler.check.simulate import draw_inputs, simulate
from compiler.errors import CommPlanError
from compiler.ir.graph import SpmdGraph, spmd_graph, well_formed
from compiler.ir.text import print_graph
from tests.support import foreign_ops
from tests.support.graphs import function

X = '%0 "x": f64[4, 8] {tp: V}'
REDUCED = "comm.all_reduce(%0) {axis = tp, op = sum}"


def exported(function: object, *args: torch.Tensor) -> fx.GraphModule:
    """A function as torch.export gives it: what ops write to are results."""

    class Model(torch.nn.Module):
        def forward(self, *xs: torch.Tensor) -> object:
            return function(*xs)  # type: ignore[operator]

    program = torch.export.export(Model(), args, strict=False)
    return program.run_decompositions({}).graph_module


def read(function: object, *args: torch.Tensor) -> SpmdGraph:
    graph = spmd_graph(exported(function, *args), Mesh({"tp": 4}))
    well_formed(graph.graph)
    return graph


@pytest.mark.parametrize(
    "line",
    [
        '%1: f64[4, 8] = vllm.all_reduce(%0, "tp")',
        '%1: f64[4, 8] = auto_deploy.torch_dist_all_reduce(%0, "AUTO")',
    ],
)
def test_one_collective(line: str) -> None:
    assert f"%1: f64[4, 8] = {REDUCED}\n" in print_graph(function(X, line, "return %1"))


@pytest.mark.parametrize(("op", "sizes"), [("all_gather", (16, 32)), ("reduce_scatter", (1, 2))])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_along_any_dimension(op: str, sizes: tuple[int, int], dim: int) -> None:
    shape = [sizes[0], 8] if dim == 0 else [4, sizes[1]]
    graph = function(X, f'%1: f64{shape} = vllm.{op}(%0, {dim}, 4, "tp")', "return %1")
    inputs = draw_inputs(graph, 0)
    (outputs,) = simulate(graph, inputs)
    for rank, found in enumerate(outputs):
        total = sum(inputs["x"]).chunk(4, dim) if op == "reduce_scatter" else ()
        torch.testing.assert_close(found, total[rank] if total else torch.cat(inputs["x"], dim))


def test_a_reduction_in_place_is_read_through_auto_functionalized() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        y = x.exp()
        torch.ops._C.shm_allreduce(0, y)
        return y + 1

    text = print_graph(read(model, torch.ones(4, 8)))
    assert "comm.all_reduce(%1) {axis = tp, op = sum}" in text
    assert "auto_functionalized" not in text


@pytest.mark.parametrize("kind", ["bases", "slices", "missing"])
def test_writes_are_results(kind: str) -> None:
    """Into tensors, into parts of one, and where one is left out."""

    def model(positions: torch.Tensor, x: torch.Tensor) -> object:
        query, key = (x.sin(), x.exp()) if kind != "slices" else x.exp().chunk(2, -1)
        torch.ops.foreign.rotate(positions, query, None if kind == "missing" else key)
        return query, key

    register_ops({"foreign::rotate": ComposedOp(foreign_ops.rotate)})
    args = torch.arange(4), torch.randn(4, 8)
    graph = read(model, *args)
    assert not any("auto_functionalized" in str(node.target) for node in graph.graph.nodes)
    for found, wanted in zip(graph.module(*args), model(*args), strict=True):  # type: ignore[arg-type, call-overload]
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_is_what_its_kernel_computes(dtype: torch.dtype) -> None:
    """Also where the weight has another type, as Gemma's."""

    def model(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.ops.vllm_ir.rms_norm(x, weight, 1e-6)

    args = torch.randn(4, 8, dtype=dtype), torch.randn(8)
    graph = read(model, *args)
    assert not graph.graph.find_nodes(op="call_function", target=torch.ops.vllm_ir.rms_norm.default)
    torch.testing.assert_close(graph.module(*args)[0], model(*args))


def test_what_gives_another_result_than_the_op_is_refused() -> None:
    register_ops({"foreign::fused_allreduce": ComposedOp(lambda x, comm: x.sum(-1))})
    with pytest.raises(CommPlanError) as error:
        function(X, '%1: f64[4, 8] = foreign.fused_allreduce(%0, "c")', "return %1")
    assert error.value.what == (
        "what foreign.fused_allreduce.default is declared to do does not give what the graph states"
    )
    assert "declared: ('float64', ['4']); stated: ('float64', ['4', '8'])" in error.value.found


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (ComposedOp(lambda x: x), "TypeError"),
        (ComposedOp("no_such_module:norm"), "No module named"),
        (CollectiveOp("all_reduce", "x", group="comm"), "'c'"),
        (CollectiveOp("all_reduce", "tensor", group="comm"), "does not have"),
    ],
)
def test_what_cannot_be_traced_is_refused(entry: ComposedOp | CollectiveOp, why: str) -> None:
    register_ops({"foreign::fused_allreduce": entry})
    with pytest.raises(CommPlanError, match=why):
        function(X, '%1: f64[4, 8] = foreign.fused_allreduce(%0, "c")', "return %1")
