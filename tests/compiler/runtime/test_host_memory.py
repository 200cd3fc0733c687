"""All_gathers over gloo on CUDA go through host memory; all others stay as they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import fx
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from compiler.ir.collectives import insert_all_gather
from compiler.runtime import host_memory
from compiler.runtime.host_memory import gather_in_host_memory, gathered, through_host
from tests.support.one_gpu import RANKS, on_one_gpu


def graph_of(device: str) -> fx.Graph:
    graph = fx.Graph()
    with FakeTensorMode():
        x = graph.placeholder("x")
        x.meta["val"] = torch.empty(3, 4, device=device)
        whole = insert_all_gather(graph, x, "tp", 2, torch.empty(6, 4, device=device))
        graph.output((whole, x))
    return graph


def test_what_is_gathered_moves_to_the_host_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "through_host", lambda x, group: group == "tp")
    graph = graph_of("cuda:0")
    assert gather_in_host_memory(graph) == 1
    graph.lint()
    calls = [n for n in graph.nodes if n.op == "call_function"]
    assert [(str(n.target), str(n.meta["val"].device)) for n in calls] == [
        ("aten._to_copy.default", "cpu"),
        ("_c10d_functional.all_gather_into_tensor.default", "cpu"),
        ("_c10d_functional.wait_tensor.default", "cpu"),
        ("aten._to_copy.default", "cuda:0"),
    ]
    assert [n.name for n in graph.output_node().all_input_nodes] == [calls[-1].name, "x"]


def test_open_sizes_stay_open(monkeypatch: pytest.MonkeyPatch) -> None:
    env = ShapeEnv()
    mode = FakeTensorMode(shape_env=env)
    sizes = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC, DimDynamic.STATIC])
    rows = mode.from_tensor(
        torch.empty(2, 4), source=ConstantSource("t"), symbolic_context=sizes
    ).shape[0]
    graph, half = fx.Graph(), (rows + 1) // 2  # one row in the example
    with mode:
        x = graph.placeholder("x")
        x.meta["val"] = torch.empty(half, 4, device="cuda:0")
        whole = torch.empty(2 * half, 4, device="cuda:0")
        graph.output(insert_all_gather(graph, x, "tp", 2, whole))
    before = len(env.guards)
    monkeypatch.setattr(host_memory, "through_host", lambda x, group: True)
    assert gather_in_host_memory(graph) == 1
    assert (len(env.guards), half.node.expr.free_symbols) == (before, rows.node.expr.free_symbols)


def test_gathers_on_the_host_stay() -> None:
    graph = graph_of("cpu")
    before = str(graph)
    assert gather_in_host_memory(graph) == 0
    assert str(graph) == before


def on_the_host(group: dist.ProcessGroup) -> tuple[bool, list[float]]:
    x, name = torch.tensor([float(group.rank())]), str(group.group_name)
    return through_host(x, name), gathered(x, group.size(), name).tolist()


def test_ranks_on_the_host(gloo_pool: Any) -> None:
    assert gloo_pool(2).run(on_the_host) == [(False, [0.0, 1.0])] * 2


def on_cuda(group: dist.ProcessGroup) -> tuple[bool, list[float], str]:
    x, name = torch.tensor([float(group.rank())], device="cuda"), str(group.group_name)
    found = gathered(x, group.size(), name)
    return through_host(x, name), found.tolist(), found.device.type


@pytest.mark.gpu
def test_ranks_on_one_gpu() -> None:
    assert on_one_gpu(on_cuda) == [(True, [0.0, 1.0], "cuda")] * RANKS
