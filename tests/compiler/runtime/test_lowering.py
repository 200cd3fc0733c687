"""What a graph on CUDA tensors becomes, and what is said of what was not fused."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from compiler.errors import CommPlanError
from compiler.ir.graph import SpmdGraph, spmd_graph
from compiler.ir.mesh import Mesh
from compiler.runtime.lowering import check_kernels, lower

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


def test_unknown_kernels() -> None:
    with pytest.raises(CommPlanError, match="one of auto, off"):
        check_kernels("fast")
