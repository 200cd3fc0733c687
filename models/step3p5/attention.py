"""Grouped-query attention with head-wise gates, sliding windows and partial, scaled rotary."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import Step3p5Config
from .layer_config import LayerConfig, Rope
from .layers import GemmaRMSNorm, wide
from .parallel import RankGroup, RowParallelLinear

KVCache = tuple[Tensor, Tensor]  # keys and values, each [batch, max_tokens, kv heads, head_dim]


class Step(NamedTuple):
    """What all layers of one forward share.

    Attributes:
        positions: [batch, tokens per sequence], int64.
        rotations: cos and sin, each [batch, tokens per sequence, 1, rotary_dims / 2].
        masks: by attention kind, which keys each query sees: [batch, 1, queries, keys], bool.
    """

    positions: Tensor
    rotations: Mapping[Rope, tuple[Tensor, Tensor]]
    masks: Mapping[str, Tensor]


def frequencies(rope: Rope, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Angle per token of each rotated pair of dimensions: [rotary_dims / 2]."""
    exponents = torch.arange(0, rope.rotary_dims, 2, device=device, dtype=dtype) / rope.rotary_dims
    base = rope.theta**-exponents
    if (scaling := rope.scaling) is None:
        return base
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns = scaling.original_max_position_embeddings * base / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1.0 - kept) * base / scaling.factor + kept * base


def rotation(rope: Rope, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cos and sin of every position's angles, in ``dtype``."""
    inner = wide(dtype)
    angles = positions.view(*positions.shape, 1, 1).to(inner) * frequencies(
        rope, inner, positions.device
    )
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates pairs (i, i + r/2) of the first r dimensions of each head; the rest pass."""
    half = cos.shape[-1]
    a, b, passed = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, passed], dim=-1)


def visible(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """Which keys each query sees: itself and those before, at most ``window`` in all.

    Args:
        queries: positions, [batch, queries].
        keys: positions, [batch or 1, keys].
        window: number of keys, the query's own included; None for no limit.

    Returns:
        [batch, 1, queries, keys], bool.
    """
    distance = queries.unsqueeze(-1) - keys.unsqueeze(-2)
    seen = distance >= 0
    if window is not None:
        seen = seen & (distance < window)
    return seen.unsqueeze(1)


class Attention(nn.Module):
    """Column-parallel over heads, row-parallel output.

    Each rank holds its query heads and the key-value heads they use; with more ranks than
    key-value heads, neighbouring ranks hold the same one.
    """

    def __init__(
        self, config: Step3p5Config, layer: LayerConfig, ranks: RankGroup, **factory: Any
    ) -> None:
        super().__init__()
        hidden, self.head_dim = config.hidden_size, config.head_dim
        self.kind, self.rope = layer.attention, layer.rope
        self.num_heads = layer.num_heads // ranks.size
        self.num_kv_heads = max(1, config.num_attention_groups // ranks.size)
        q_dims, kv_dims = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(hidden, q_dims, bias=False, **factory)
        self.k_proj = nn.Linear(hidden, kv_dims, bias=False, **factory)
        self.v_proj = nn.Linear(hidden, kv_dims, bias=False, **factory)
        self.g_proj = nn.Linear(hidden, self.num_heads, bias=False, **factory)
        self.o_proj = RowParallelLinear(q_dims, hidden, ranks, **factory)
        self.q_norm = GemmaRMSNorm(self.head_dim, config.rms_norm_eps, **factory)
        self.k_norm = GemmaRMSNorm(self.head_dim, config.rms_norm_eps, **factory)

    def forward(self, x: Tensor, step: Step, cache: KVCache | None) -> Tensor:
        """Attends from every token of ``x`` [tokens, hidden]; writes keys, values to ``cache``."""
        batch, length = step.positions.shape
        queries = self.q_proj(x).view(batch, length, self.num_heads, self.head_dim)
        keys = self.k_proj(x).view(batch, length, self.num_kv_heads, self.head_dim)
        values = self.v_proj(x).view(batch, length, self.num_kv_heads, self.head_dim)
        gate = torch.sigmoid(self.g_proj(x))
        cos, sin = step.rotations[self.rope]
        queries = rotate(self.q_norm(queries), cos, sin)
        keys = rotate(self.k_norm(keys), cos, sin)
        if cache is not None:
            slots = (torch.arange(batch, device=x.device).unsqueeze(1), step.positions)
            keys = cache[0].index_put_(slots, keys)
            values = cache[1].index_put_(slots, values)
        out = F.scaled_dot_product_attention(
            queries.transpose(1, 2),
            self._per_query_head(keys),
            self._per_query_head(values),
            attn_mask=step.masks[self.kind],
        )
        gated = out.transpose(1, 2).reshape(-1, self.num_heads, self.head_dim) * gate.unsqueeze(-1)
        return self.o_proj(gated.flatten(1))

    def _per_query_head(self, x: Tensor) -> Tensor:
        """[batch, keys, kv heads, dim] to [batch, query heads, keys, dim].

        Expanded here because the fused kernels that accept a mask do not accept grouped heads.
        """
        groups = self.num_heads // self.num_kv_heads
        grouped = x.transpose(1, 2).unsqueeze(2).expand(-1, -1, groups, -1, -1)
        return grouped.flatten(1, 2)
