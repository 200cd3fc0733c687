"""Tiny tensor-parallel models, already sharded, and the ranks that run them."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import nn

HIDDEN, SHARD = 8, 4
NORM = "layers.0.norm.weight"


@dataclass(frozen=True)
class Ranks:
    """All ranks of ``group``."""

    group: dist.ProcessGroup

    @property
    def size(self):
        return self.group.size()

    @property
    def rank(self):
        return self.group.rank()

    def gather(self, item):
        everyone = [item] * self.size
        dist.all_gather_object(everyone, item, group=self.group)
        return everyone


class Block(nn.Module):
    """x + W2 relu(W1 norm(x)), summed over the group in place or functionally."""

    def __init__(self, group=None, inplace=False):
        super().__init__()
        self.group, self.inplace = group or dist.group.WORLD, inplace
        self.norm = nn.RMSNorm(HIDDEN)
        self.up = nn.Linear(HIDDEN, SHARD, bias=False)
        self.down = nn.Linear(SHARD, HIDDEN, bias=False)

    def forward(self, x):
        partial = self.down(torch.relu(self.up(self.norm(x))))
        if not self.inplace:
            return x + funcol.all_reduce(partial, "sum", self.group)
        dist.all_reduce(partial, group=self.group)
        return x + partial


class Stack(nn.Module):
    """Two blocks. Replicated tensors are equal on all ranks, shards differ."""

    def __init__(self, group=None, inplace=False):
        super().__init__()
        self.layers = nn.ModuleList([Block(group, inplace) for _ in range(2)])
        generator = torch.Generator().manual_seed(dist.get_rank())
        for layer in self.layers:
            for shard in (layer.up.weight, layer.down.weight):
                shard.data = torch.randn(shard.shape, generator=generator)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Embedding(nn.Module):
    """A vocabulary in blocks: looks up what this rank holds, and sums over the ranks."""

    def __init__(self, group=None, offsets=lambda rank: rank * 16):
        super().__init__()
        self.group = group or dist.group.WORLD
        self.offset = offsets(dist.get_rank(self.group))
        self.weight = nn.Parameter(torch.randn(16, HIDDEN))

    def forward(self, ids):
        local = ids - self.offset
        elsewhere = (local < 0) | (local >= 16)
        found = self.weight[local.masked_fill(elsewhere, 0)]
        found = found.masked_fill(elsewhere[:, None], 0.0)
        return funcol.all_reduce(found, "sum", self.group)


class Cached(nn.Module):
    """Writes to a buffer and to an argument, and returns a tree."""

    def __init__(self):
        super().__init__()
        self.register_buffer("cache", torch.zeros(4, HIDDEN))
        self.register_buffer("total", torch.zeros(HIDDEN))
        self.up = nn.Linear(HIDDEN, HIDDEN, bias=False)

    def forward(self, x, history, *, scale=1.0):
        self.cache.add_(self.up(x).sum(0))
        self.total.add_(x.sum(0))
        history.copy_(history + self.up(x))
        return {"y": x * scale, "tokens": x.shape[0], "none": None}
