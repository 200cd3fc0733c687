"""What a graph on CUDA tensors becomes, and what is said of what was not fused."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from compiler.check import Report, Verdict
from compiler.errors import CommPlanError
from compiler.ir import access, fused_ops
from compiler.ir.graph import SpmdGraph, spmd_graph
from compiler.ir.mesh import Mesh
from compiler.ir.text import print_graph
from compiler.pipeline import PassRecord
from compiler.runtime import lowering
from compiler.runtime.lowering import check_kernels, largest_bytes, lower
from passes import LOWERING, FuseReduceNorm
from tests.support.graphs import function

aten, c10d = torch.ops.aten, torch.ops._c10d_functional


@pytest.fixture
def group_name() -> Iterator[str]:
    dist.init_process_group("fake", rank=0, world_size=4)
    yield str(dist.distributed_c10d._get_default_group().group_name)
    dist.destroy_process_group()


def graph_on(device: str) -> SpmdGraph:
    """rms_norm(x + all_reduce(x @ x)) of x [16, 16]."""
    graph = fx.Graph()

    def emit(target: object, *args: object) -> fx.Node:
        node = graph.call_function(target, args)  # type: ignore[arg-type]
        node.meta["val"] = target(*fx.node.map_arg(args, lambda n: n.meta["val"]))  # type: ignore
        return node

    with FakeTensorMode():
        x, weight = graph.placeholder("x"), graph.placeholder("weight")
        x.meta["val"] = torch.empty(16, 16, device=device)
        weight.meta["val"] = torch.empty(16, device=device)
        started = emit(c10d.all_reduce.default, emit(aten.mm.default, x, x), "sum", "tp")
        h = emit(aten.add.Tensor, x, emit(c10d.wait_tensor.default, started))
        graph.output((emit(aten.rms_norm.default, h, [16], weight, 1e-6),))
    return spmd_graph(fx.GraphModule(torch.nn.Module(), graph), Mesh({"tp": 4}))


@pytest.mark.parametrize(
    ("device", "kernels", "said"),
    [
        ("cpu", "auto", []),
        ("cuda", "off", ["kernels 'off': no reduction was fused"]),
        ("cuda", "auto", ["all_reduce not fused: a fake process group has no other ranks"]),
    ],
)
def test_every_fall_back_is_said(
    device: str, kernels: str, said: list[str], group_name: str
) -> None:
    source = graph_on(device)
    found = lower(source, {"tp": group_name}, mutations={}, kernels=kernels)
    assert [r.reason for r in found.remarks] == said
    assert c10d.all_reduce.default in [n.target for n in found.module.graph.nodes]
    assert c10d.all_reduce_.default in [n.target for n in found.eager.graph.nodes]
    assert all(n.args[2] == group_name for n in found.module.graph.nodes if "sum" in n.args)
    assert "tp" in [a for n in source.graph.nodes for a in n.args], "the source is not changed"


def test_observers_see_every_pass(group_name: str) -> None:
    seen: list[PassRecord] = []
    lower(graph_on("cpu"), {"tp": group_name}, mutations={}, observers=[seen.append])
    assert [r.name for r in seen] == [p.name for p in LOWERING if p is not FuseReduceNorm]
    assert not any(r.changed for r in seen[:-1])


def test_a_pass_that_is_not_proved_is_left_out(
    group_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Report(Verdict.UNPROVED, "output 0 differs")
    monkeypatch.setattr("compiler.pipeline.check", lambda *_: wrong)
    source = function(
        '%0 "x": f32[4, 4] {tp: V}, %1 "y": f32[4, 4] {tp: R}',
        "%2: f32[4, 4] = comm.all_reduce(%0) {axis = tp, op = sum}",
        "%3: f32[4, 4] = aten.exp(%1)",
        "%4: f32[4, 4] = aten.add.Tensor(%2, %3)",
        "return (%4,)",
    )
    written = print_graph(source)
    seen: list[PassRecord] = []
    found = lower(source, {"tp": group_name}, mutations={}, observers=[seen.append])
    assert print_graph(seen[-1].graph) == written
    why = "schedule-collectives left out: the checker says UNPROVED, output 0 differs"
    assert [r.reason for r in found.remarks] == [why]


def symbolic_graph() -> SpmdGraph:
    """rms_norm(x + all_reduce(x)) of x [s, 16] on CUDA, and its symbol's name."""
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    mode = FakeTensorMode(shape_env=ShapeEnv())
    rows = mode.from_tensor(torch.empty(6, 16)).shape[0]
    graph = fx.Graph()
    with mode:
        held = {"x": torch.empty(rows, 16, device="cuda"), "weight": torch.empty(16, device="cuda")}
        nodes = [graph.placeholder(name) for name in held]
        for node in nodes:
            node.meta["val"] = held[str(node.target)]

        def emit(target: object, *args: object) -> fx.Node:
            node = graph.call_function(target, args)  # type: ignore[arg-type]
            node.meta["val"] = target(*fx.node.map_arg(args, lambda n: n.meta["val"]))  # type: ignore
            return node

        doubled = emit(aten.mul.Tensor, nodes[0], 2)
        total = emit(c10d.wait_tensor.default, emit(c10d.all_reduce.default, doubled, "sum", "tp"))
        h = emit(aten.add.Tensor, nodes[0], total)
        graph.output((emit(aten.rms_norm.default, h, [16], nodes[1], 1e-6),))
    return spmd_graph(fx.GraphModule(torch.nn.Module(), graph), Mesh({"tp": 4}))


@pytest.mark.parametrize(
    ("most", "asked", "said"),
    [
        (100, 6400, "2 x 6400 bytes; no payload has more than 6400"),
        (
            None, 8192, "2 x 8192 bytes, and payloads of any number of tokens: those that do not "
            "fit run as the group's own collectives, then a norm",
        ),
        (
            200, 8192, "2 x 8192 bytes, and payloads of 12800 bytes: those that do not fit run as "
            "the group's own collectives, then a norm",
        ),
    ],
)  # fmt: skip
def test_a_workspace_is_sized_by_the_plan(
    most: int | None, asked: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def made(group: dist.ProcessGroup, slot_bytes: int, machine: None) -> SimpleNamespace:
        sizes.append(slot_bytes)
        return SimpleNamespace(slot_bytes=slot_bytes)

    monkeypatch.setattr(lowering, "workspace_for", made)
    monkeypatch.setattr(lowering, "SLOT_BYTES", 8192)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        source = symbolic_graph()
        (symbol,) = access.shape(access.node_of(source.graph, "placeholder")[0])[
            0
        ].node.expr.free_symbols
        bounds = {} if most is None else {str(symbol): most}
        name = str(dist.distributed_c10d._get_default_group().group_name)
        found = lower(source, {"tp": name}, mutations={}, most=bounds)
    finally:
        dist.destroy_process_group()
    assert sizes == [asked]
    assert [r.reason for r in found.remarks] == [
        "all_reduce fused with add + RMSNorm",
        f"fused ops of group 'tp' have a workspace of {said}",
    ]
    assert fused_ops.ALL_REDUCE_NORM in [n.target for n in found.module.graph.nodes]
    payload = next(n for n in source.graph.nodes if n.target is aten.mul.Tensor)
    assert largest_bytes(payload, bounds) == (None if most is None else 64 * most)


def test_unknown_kernels() -> None:
    with pytest.raises(CommPlanError, match="one of auto, off"):
        check_kernels("fast")
