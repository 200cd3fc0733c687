"""A plain decoder, and the plans by which PyTorch's own ``parallelize_module`` shards it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from compiler.ir.mesh import Mesh
from compiler.ir.placement import Varying

VOCABULARY, WIDTH, HEADS, LAYERS = 64, 32, 8, 2


class RMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, 1e-6)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [sequences, tokens, width], Replicate; so is the result, by the plan of ``o``."""
        q, k, v = (
            f(x).unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2)
            for f in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(WIDTH, 2 * WIDTH, bias=False) for _ in range(2))
        self.down = nn.Linear(2 * WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Layer(nn.Module):
    """Attention and MLP beside each other, as in GPT-J and Cohere: their two sums meet."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention, self.mlp = RMSNorm(), Attention(), MLP()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        return x + self.attention(y) + self.mlp(y)


class PlainDecoder(nn.Module):
    """Logits of token ids; nothing in it knows of ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm, self.head = RMSNorm(), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def _columns_and_rows() -> dict[str, ParallelStyle]:
    columns = ("attention.q", "attention.k", "attention.v", "mlp.gate", "mlp.up")
    return {
        **{name: ColwiseParallel() for name in columns},
        **{name: RowwiseParallel() for name in ("attention.o", "mlp.down")},
    }


def _sequence() -> dict[str, ParallelStyle]:
    gathered = PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),))
    return _columns_and_rows() | {
        "norm": SequenceParallel(),
        "attention": gathered,
        "mlp": gathered,
        "attention.o": RowwiseParallel(output_layouts=Shard(1)),
        "mlp.down": RowwiseParallel(output_layouts=Shard(1)),
    }


def _ends() -> dict[str, ParallelStyle]:
    return {
        "embedding": RowwiseParallel(input_layouts=Replicate()),
        "head": ColwiseParallel(output_layouts=Replicate()),
    }


def _sequence_ends() -> dict[str, ParallelStyle]:
    return {
        "embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "norm": SequenceParallel(),
        "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
    }


@dataclass(frozen=True)
class Plan:
    """How ``PlainDecoder`` is sharded.

    Attributes:
        layer: styles by the names of a layer's modules.
        outside: likewise of the modules outside the layers; a function each, as styles have state.
        replicas: data-parallel replicas, each with a batch of its own.
    """

    layer: Callable[[], Mapping[str, ParallelStyle]] = _columns_and_rows
    outside: Callable[[], Mapping[str, ParallelStyle]] = dict
    replicas: int = 1

    @property
    def fewest_ranks(self) -> int:
        """Two for each replica."""
        return 2 * self.replicas

    def build(self, dtype: torch.dtype, ranks: int) -> PlainDecoder:
        """This rank's part of the decoder; weights are the same for every plan."""
        mesh = self.mesh(ranks)["tp"]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = PlainDecoder().to(dtype).eval()
        for layer in model.layers:
            parallelize_module(layer, mesh, dict(self.layer()))
        parallelize_module(model, mesh, dict(self.outside()))
        return model

    def mesh(self, ranks: int) -> DeviceMesh:
        """Axes dp and tp over all ranks."""
        sizes = (self.replicas, ranks // self.replicas)
        return init_device_mesh("cpu", sizes, mesh_dim_names=("dp", "tp"))

    def declared(self, ranks: int) -> dict[str, Any]:
        """What ``optimize_allreduce`` is to be told: that replicas have batches of their own."""
        if self.replicas == 1:
            return {}
        axes = {"dp": self.replicas, "tp": ranks // self.replicas}
        return {"mesh": Mesh(axes), "inputs": {"ids": {"dp": Varying()}}}


PLANS: Mapping[str, Plan] = {
    "columns and rows": Plan(),
    "with embedding and head": Plan(outside=_ends),
    "sequence parallel": Plan(_sequence, _sequence_ends),
    "dp 2 x tp": Plan(outside=_ends, replicas=2),
}
