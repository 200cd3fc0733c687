"""Graphs at the edge of the laws: joint groups, whole numbers, a single token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol

from compiler import optimize_allreduce
from compiler.capture.fake_ranks import fake_process_group
from compiler.check import Verdict
from compiler.ir.mesh import Mesh
from compiler.optimize import check_equivalence, optimize_graph
from tests.compiler.optimize.optimized import optimized
from tests.support.graphs import Builder, aten, inputs_of


def test_reductions_over_orthogonal_groups_are_one_that_the_mesh_can_resolve() -> None:
    mesh = Mesh({"dp": 2, "tp": 2})
    build = Builder(mesh)
    x = build.input("x", 4, 8, varies=("dp", "tp"))
    graph = build.finish(build.all_reduce(build.all_reduce(x, "tp"), "dp"))
    result = optimized(graph)
    assert result.after.counts == {"all_reduce": 1}
    report = check_equivalence(
        graph.module, result.graph_module, mesh=mesh, inputs=inputs_of(graph)
    )
    assert report.verdict is Verdict.EQUIVALENT


class Sums(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = (torch.nn.Linear(4, 8, bias=False) for _ in range(2))
        self.right.register_buffer("unread", torch.ones(3))
        self.unused = torch.nn.Parameter(torch.ones(2))

    def forward(self, given: dict[str, torch.Tensor], scale: int = 2) -> dict[str, Any]:
        group = dist.group.WORLD
        left, right = self.left(given["x"]), self.right(given["x"])
        sums = [funcol.all_reduce(part, "sum", group) for part in (left, right)]  # type: ignore[arg-type]
        return {"y": sums[0] + sums[1], "rest": (None, scale)}


def test_an_exported_module_keeps_its_state_and_is_called_as_before() -> None:
    dist.init_process_group("fake", rank=0, world_size=4)
    try:
        dims = ({"x": {0: torch.export.Dim.DYNAMIC}},)
        exported = torch.export.export(
            Sums(), ({"x": torch.ones(3, 4)},), dynamic_shapes=dims, strict=False
        )
        module = exported.run_decompositions({}).module()
        name = str(dist.group.WORLD.group_name)  # type: ignore[union-attr]
        mesh = Mesh({"tp": 4}, groups={name: [[0, 1, 2, 3]]})
        result = optimize_graph(module, mesh=mesh)
        assert result.after.counts == {"all_reduce": 1}
        made = result.graph_module
        assert check_equivalence(module, made, mesh=mesh).verdict is Verdict.EQUIVALENT
        held, kept = (m.state_dict(keep_vars=True) for m in (module, made))
        assert set(held) == set(kept)
        assert all(kept[key] is held[key] for key in held)
        with torch.no_grad():
            want, got = (m({"x": torch.ones(5, 4)}) for m in (module, made))
        assert torch.allclose(want["y"], got["y"])
        assert want["rest"] == got["rest"] == (None, 2)
    finally:
        dist.destroy_process_group()


def test_averages_of_whole_numbers_stay() -> None:
    build = Builder(Mesh({"tp": 4}))
    x, y = (build.input(name, 4, varies=("tp",), dtype=torch.int64) for name in "xy")
    means = [build.all_reduce(addend, op="avg") for addend in (x, y)]
    result = optimized(build.finish(build.call(aten.add.Tensor, *means)))
    assert result.after.counts == {"all_reduce": 2}
    assert result.verdict is Verdict.IDENTICAL


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5])
def test_sparse_layers_of_square_weights_for_any_number_of_tokens(tokens: int) -> None:
    build = Builder(Mesh({"tp": 4}))
    x, w = build.input("x", tokens, 16), build.input("w", 16, 16, varies=("tp",))
    first = len(build.graph.nodes)
    h = build.call(aten.add.Tensor, x, build.all_reduce(build.call(aten.mm.default, x, w)))
    square = build.call(aten.mean.dim, build.call(aten.mul.Tensor, h, h), [-1], True)
    y = build.call(aten.mul.Tensor, h, build.call(aten.rsqrt.default, square))
    for node in list(build.graph.nodes)[first:]:
        node.meta["nn_module_stack"] = {"m": ("model.layers.0", torch.nn.Module)}
    graph = build.finish(y)
    result = optimized(graph, policy="boundary", layers=["sparse"])
    assert result.verdict.runs
    assert "reduce_scatter" in result.after.counts


class Experts(torch.nn.Module):
    """The loop of Hugging Face: each expert takes the rows that are routed to it."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.experts = experts
        self.router = torch.nn.Linear(8, experts, bias=False)
        self.up = torch.nn.Parameter(torch.ones(experts, 4, 8))
        self.down = torch.nn.Parameter(torch.ones(experts, 8, 4))
        self.shared = torch.nn.Linear(8, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(2, -1)
        routed = torch.zeros_like(x)
        for expert in range(self.experts):
            row, column = torch.where(chosen == expert)
            y = torch.relu(x[row] @ self.up[expert].t()) @ self.down[expert].t()
            routed.index_add_(0, row, y * weights[row, column, None])
        dist.all_reduce(routed)
        shared = self.shared(x)
        dist.all_reduce(shared)
        return x + routed + shared


@pytest.mark.parametrize("experts", [2, 8])
def test_a_loop_over_experts_of_rows_known_by_data(experts: int) -> None:
    with fake_process_group(0, 2):
        result = optimize_allreduce(Experts(experts), (torch.randn(5, 8),))
    (text, *_) = str(result.report).splitlines()
    assert "2 all_reduces before, 1 after" in text
    assert text.endswith("verdict EQUIVALENT")
