"""Models that compute on DTensors are recorded as their local tensors, on two gloo ranks."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)  # fmt: skip
from torch.torch_version import TorchVersion

from compiler import optimize_allreduce
from compiler.errors import CaptureError

SYMBOLIC = TorchVersion(torch.__version__) >= "2.13"
"""Whether matrix products below DTensor can be recorded with symbolic sizes."""


class Branch(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


class Decoder(nn.Module):
    """Two branches from one normalized value, between an embedding and a head."""

    def __init__(self, width=8, vocabulary=12):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.norm = nn.RMSNorm(width)
        self.left, self.right = Branch(width), Branch(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids):
        x = self.embed(ids)
        y = self.norm(x)
        return self.head(x + self.left(y) + self.right(y))


PLAN = {
    "embed": RowwiseParallel(input_layouts=Replicate(), output_layouts=Replicate()),
    "head": ColwiseParallel(output_layouts=Replicate()),
    **{f"{side}.up": ColwiseParallel() for side in ("left", "right")},
    **{f"{side}.down": RowwiseParallel() for side in ("left", "right")},
}


def parallelized(group: dist.ProcessGroup) -> dict[str, object]:
    torch.manual_seed(0)
    model, ids = Decoder(), torch.arange(10).view(2, 5) % 12
    with torch.no_grad():
        whole = model(ids)
        mesh = DeviceMesh.from_group(group, "cpu", mesh_dim_names=("tp",))
        parallelize_module(model, mesh, PLAN)
        eager = model(ids)
        optimized = optimize_allreduce(model, group=group)
        try:
            result = optimized(ids)
        except CaptureError as error:
            return {"refused": str(error)}
        longer = torch.arange(18).view(2, 9) % 12
        other = optimized(longer)
        return {
            "close": [torch.allclose(a, b, atol=1e-5) for a, b in
                      ((result, eager), (result, whole), (other, model(longer)))],
            "report": str(optimized.report),
        }  # fmt: skip


def test_a_plan_of_parallelize_module_is_recorded_and_merged(gloo_pool):
    for found in gloo_pool(2).run(parallelized):
        if not SYMBOLIC:
            assert found["refused"].startswith("the model computes on DTensors")
            assert found["refused"].endswith("which sees models below DTensor too")
            continue
        assert found["close"] == [True, True, True]
        assert "torch.export" not in found["report"]
        assert found["report"].startswith("3 all_reduces before, 2 after")
        assert "verdict EQUIVALENT" in found["report"]
