"""Small tensor-parallel models, as their authors write them."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

HIDDEN, VOCABULARY = 16, 32


class Branches(nn.Module):
    """Two row-parallel products that meet in an addition, each with its own all_reduce."""

    def __init__(self, group: dist.ProcessGroup, layers: int = 1) -> None:
        super().__init__()
        torch.manual_seed(group.rank())
        self.group = group
        self.left, self.right = (
            nn.ModuleList(nn.Linear(HIDDEN, HIDDEN, bias=False) for _ in range(layers))
            for _ in range(2)
        )
        self.scale = 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for left, right in zip(self.left, self.right, strict=True):
            a, b = left(x), right(x)
            dist.all_reduce(a, group=self.group)
            dist.all_reduce(b, group=self.group)
            x = F.silu(x + self.scale * a + b)
        return x


class Cached(nn.Module):
    """Writes what it has summed into a cache of the caller's."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__()
        torch.manual_seed(group.rank())
        self.group = group
        self.left, self.right = (nn.Linear(HIDDEN, HIDDEN, bias=False) for _ in range(2))

    def forward(self, x: torch.Tensor, at: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
        a, b = self.left(x), self.right(x)
        dist.all_reduce(a, group=self.group)
        dist.all_reduce(b, group=self.group)
        cache.index_copy_(0, at, a + b)
        return cache.sum(0)


class Layer(nn.Module):
    """Attention without scores and an MLP, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(HIDDEN)
        self.v, self.o = (nn.Linear(HIDDEN, HIDDEN, bias=False) for _ in range(2))
        self.up, self.down = nn.Linear(HIDDEN, 32, bias=False), nn.Linear(32, HIDDEN, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        return x + self.o(self.v(y)) + self.down(F.silu(self.up(y)))


class Decoder(nn.Module):
    """Token ids [batch, tokens] to logits [batch, tokens, VOCABULARY]."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(layers))
        self.norm = nn.RMSNorm(HIDDEN)
        self.head = nn.Linear(HIDDEN, VOCABULARY, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def sharded(model: Decoder, mesh: DeviceMesh, *, ends: bool = True, sequence: bool = False) -> None:
    """Let PyTorch shard a decoder over ``mesh``; ``ends``: its embedding and head too."""
    columns = {"input_layouts": Shard(1)} if sequence else {}
    rows = {"output_layouts": Shard(1)} if sequence else {}
    plan = {name: ColwiseParallel(**columns) for name in ("v", "up")}
    plan |= {name: RowwiseParallel(**rows) for name in ("o", "down")}
    norm = {"norm": SequenceParallel()} if sequence else {}
    for layer in model.layers:
        parallelize_module(layer, mesh, plan | norm)
    if ends:
        embedding = RowwiseParallel(input_layouts=Replicate(), **rows)
        head = ColwiseParallel(**columns, output_layouts=Replicate())
        parallelize_module(model, mesh, {"embedding": embedding, "head": head} | norm)
