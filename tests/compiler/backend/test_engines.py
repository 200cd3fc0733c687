"""Graphs of an engine: its ops are read and written back, and what it says of inputs counts."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import fx

import compiler
from compiler.backend.backend_options import BackendOptions
from compiler.backend.dynamo_backend import compiled
from compiler.ir.dialects import read, write
from compiler.ir.dialects.read import readings_of
from compiler.ir.placement import Placement, Replicate, Varying
from tests.support import foreign_ops  # noqa: F401

RANKS = 2


class Branches(torch.nn.Module):
    """Two products of weights that are alike on all ranks, by chance, and reduced apart."""

    def __init__(self, group: str) -> None:
        super().__init__()
        self.group = group
        self.left, self.right = (torch.nn.Parameter(torch.eye(8)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return sum(torch.ops.vllm.all_reduce(x @ w, self.group) for w in (self.left, self.right))  # type: ignore[return-value]


class Engine:
    def __init__(self, group: str, weights: Placement) -> None:
        self.group, self.weights = group, weights
        self.ran: list[str] = []

    def declare(self, node: fx.Node, value: Any) -> Placement | None:
        return self.weights if isinstance(value, torch.nn.Parameter) else Replicate()

    def read(self, gm: fx.GraphModule) -> fx.GraphModule:
        graph = read(gm.graph, lambda name: RANKS)
        self.readings = readings_of(graph)
        return fx.GraphModule(gm, graph)

    def write(self, module: fx.GraphModule) -> None:
        module.graph = write(module.graph, self.readings, lambda name: RANKS)
        self.ran = [str(n.target) for n in module.graph.nodes if "reduce" in str(n.target)]


def on_a_rank(group: dist.ProcessGroup) -> tuple[list[str], dict[str, int], float]:
    engine = Engine(group.group_name, Varying())
    model, x = Branches(group.group_name), torch.ones(3, 8)
    torch._dynamo.reset()
    compiler.reset_reports()
    settings = BackendOptions.of({"inner": "eager", "on_failure": "raise"})
    run = torch.compile(model, backend=lambda gm, inputs: compiled(gm, inputs, settings, engine))
    with torch.no_grad():
        difference = (run(x) - model(x)).abs().max().item()
    (report,) = compiler.reports()
    return engine.ran, dict(report.inputs), difference


def test_weights_are_what_the_engine_says_and_its_own_op_runs(gloo_pool: Any) -> None:
    for ran, inputs, difference in gloo_pool(RANKS).run(on_a_rank):
        assert ran == ["vllm.all_reduce.default"]
        assert sorted(inputs.values()) == [1, 2]
        assert difference == 0
