import math

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from compiler.capture import capture_ranks, fake_ranks
from compiler.capture.fake_ranks import fake_process_group
from compiler.errors import CaptureError
from compiler.ir import access, collectives, placement
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Replicate, Varying
from tests.compiler.capture.models import HIDDEN, NORM, Embedding, Stack

IDS = ((torch.arange(6),), {})
X = ((torch.randn(6, HIDDEN),), {})


def rank_values(captured):
    found = [access.rank_constants(node) for node in captured.graph.graph.nodes]
    return [constant.values for constants in found for constant in constants]


def test_numbers_computed_from_the_rank_are_rank_constants():
    captured = capture_ranks(Embedding, lambda: IDS, 8)
    assert rank_values(captured) == [tuple(range(0, 128, 16))]
    assert captured.graph.mesh == Mesh({"tp": 8})
    assert captured.remarks == ("captured as ranks 0, 7 of 8; the others are inferred",)


def test_numbers_on_no_line_are_asked_of_every_rank():
    captured = capture_ranks(lambda: Embedding(offsets=lambda r: r // 2 * 16), lambda: IDS, 4)
    assert rank_values(captured) == [(0, 0, 16, 16)]
    assert captured.remarks == ()


class RankTensors(nn.Module):
    """Code that puts its rank into tensors: one made in forward, one in the constructor."""

    def __init__(self):
        super().__init__()
        self.rank = dist.get_rank()
        self.register_buffer("table", torch.arange(HIDDEN) + self.rank, persistent=False)
        self.register_buffer("angles", torch.arange(HIDDEN) / 2, persistent=False)

    def forward(self, x):
        return x + self.table, x + self.angles, x + torch.tensor([float(self.rank)])


def test_tensors_computed_from_the_rank_are_varying():
    inputs = capture_ranks(RankTensors, lambda: X, 4).graph.inputs
    assert inputs["b_table"] == (Varying(),)
    assert inputs["b_angles"] == (Replicate(),)
    assert inputs["c_lifted_tensor_0"] == (Varying(),)


class RankedOp(nn.Module):
    def forward(self, x):
        return x.sin() if dist.get_rank() else x.cos()


def test_another_op_on_some_rank_is_refused():
    with pytest.raises(CaptureError, match=r"rank 0: .*cos.*; rank 2: .*sin") as caught:
        capture_ranks(RankedOp, lambda: X, 3)
    assert caught.value.where.startswith("test_fake_ranks.py:")


def test_parameters_that_meet_whole_tensors_are_replicated_and_listed():
    captured = capture_ranks(Stack, lambda: X, 4)
    placed = {key: captured.graph.inputs[name] for name, key in captured.state.items()}
    assert placed[NORM] == (Replicate(),)
    assert placed["layers.0.up.weight"] == placed["layers.1.down.weight"] == (Varying(),)
    assert any(
        NORM in why and "rms_norm" in why and "models.py:" in why for why in captured.assumed
    )


class Grid(nn.Module):
    """Sums over both dimensions of a grid of two by two ranks."""

    def __init__(self):
        super().__init__()
        grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
        self.rows, self.columns = grid.get_group("tp"), grid.get_group("dp")

    def forward(self, x):
        dist.all_reduce(x, group=self.rows)
        dist.all_reduce(x, group=self.columns)
        return x


def test_dimensions_of_a_device_mesh_are_axes():
    captured = capture_ranks(Grid, lambda: X, 4)
    assert captured.graph.mesh == Mesh({"dp": 2, "tp": 2})
    assert collectives.all_group_names(captured.graph.graph) == ("tp", "dp")
    assert set(captured.groups) == {"tp", "dp"}


class Distributed(nn.Module):
    """A layer whose weight is a DTensor, cut by columns."""

    def __init__(self):
        super().__init__()
        line = init_device_mesh("cpu", (4,), mesh_dim_names=("tp",))
        weight = distribute_tensor(torch.randn(4, HIDDEN), line, [Shard(0)])
        self.up, self.group = nn.Linear(HIDDEN, 4, bias=False), line.get_group()
        self.up.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x):
        return funcol.all_reduce(self.up(x) @ self.up.weight, "sum", self.group)


def test_dtensors_declare_their_placement():
    captured = capture_ranks(Distributed, lambda: X, 4)
    assert captured.graph.inputs["p_up_weight"] == (placement.Shard(0),)
    assert captured.graph.mesh == Mesh({"tp": 4})


class TwoNames(nn.Module):
    """A DTensor buffer under two keys."""

    def __init__(self):
        super().__init__()
        line = init_device_mesh("cpu", (4,), mesh_dim_names=("tp",))
        table = distribute_tensor(torch.randn(4, HIDDEN), line, [Shard(0)])
        self.group = line.get_group()
        self.register_buffer("first", table)
        self.register_buffer("second", table)

    def forward(self, x):
        return funcol.all_reduce(x + self.first + self.second.exp(), "sum", self.group)


def test_a_dtensor_under_two_names_declares_both():
    inputs = capture_ranks(TwoNames, lambda: X, 4).graph.inputs
    assert inputs["b_first"] == inputs["b_second"] == (placement.Shard(0),)


class ManyConstants(nn.Module):
    def forward(self, x):
        return [x + torch.tensor([float(i)]) for i in range(20)]


def test_tensors_are_compared_in_the_order_of_the_graph(monkeypatch):
    compared = []

    def place(lifted, mesh, given, declared, digests):
        compared.extend(digests)
        return original(lifted, mesh, given, declared, digests)

    original = fake_ranks.input_placements.place
    monkeypatch.setattr(fake_ranks.input_placements, "place", place)
    captured = capture_ranks(ManyConstants, lambda: X, 2)
    assert compared == list(captured.constants)
    assert len(compared) == 20


def test_groups_are_named_as_on_a_given_mesh():
    captured = capture_ranks(Grid, lambda: X, 4, mesh=Mesh({"a": 2, "b": 2}))
    assert collectives.all_group_names(captured.graph.graph) == ("b", "a")


def test_nothing_is_left_behind():
    capture_ranks(Embedding, lambda: IDS, 2)
    assert not dist.is_initialized()


def test_a_process_group_in_use_is_left_alone():
    with fake_process_group(0, 2), pytest.raises(CaptureError, match="'fake' is initialized"):
        capture_ranks(Embedding, lambda: IDS, 2)


def test_meta_tensors_are_captured_without_values():
    def factory():
        with torch.device("meta"):
            return Stack()

    captured = capture_ranks(factory, lambda: ((torch.empty(6, HIDDEN, device="meta"),), {}), 2)
    assert math.prod(captured.graph.mesh.axes.values()) == 2
