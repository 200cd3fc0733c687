"""Grouped-query attention with head-wise gates, sliding windows and partial, scaled rotary."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import Step3p5Config
from .layer_config import FULL, LayerConfig, Rope
from .layers import GemmaRMSNorm, wide
from .parallel import RankGroup, RowParallelLinear

KVCache = tuple[Tensor, Tensor]  # keys and values, each [batch, max_tokens, kv heads, head_dim]


class Band(NamedTuple):
    """How blocks of successive queries meet the keys of their windows.

    Attributes:
        queries: index of each query of the blocks, [blocks * queries of a block]; the last block
            repeats the last query. None: blocks are all queries, in order.
        keys: sequence and index of each block's keys, which broadcast to [batch, blocks, keys of
            a block].
        bias: of scores, [batch * blocks, 1, queries of a block, keys of a block]: 0, or -inf for
            keys that the query does not see.
    """

    queries: Tensor | None
    keys: tuple[Tensor, Tensor]
    bias: Tensor


class Step(NamedTuple):
    """What all layers of one forward share.

    Attributes:
        positions: [batch, tokens per sequence], int64.
        rotations: cos and sin, each [batch, tokens per sequence, 1, rotary_dims / 2].
        seen: which keys full layers see, [batch, 1, queries, keys], bool; None: those up to
            the query, which are computed with it.
        band: of sliding layers.
    """

    positions: Tensor
    rotations: Mapping[Rope, tuple[Tensor, Tensor]]
    seen: Tensor | None
    band: Band


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
    turned = torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(b * cos, a, sin)
    return torch.cat([*turned, passed], dim=-1)


def visible(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """Which keys each query sees: itself and those before, at most ``window`` in all.

    Args:
        queries: positions, [..., queries].
        keys: positions, [..., keys].
        window: number of keys, the query's own included; None for no limit.

    Returns:
        [..., queries, keys], bool.
    """
    distance = queries.unsqueeze(-1) - keys.unsqueeze(-2)
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)


def band(positions: Tensor, window: int, max_tokens: int | None, dtype: torch.dtype) -> Band:
    """Blocks of a quarter window of queries with the keys that any of their windows reaches.

    Smaller blocks compute fewer scores that no query sees, and larger ones copy fewer keys twice.

    Args:
        positions: of the queries, [batch, queries]; successive ones if keys are in a cache.
        window: number of keys that a query sees, its own included.
        max_tokens: keys in a cache, at their positions; None: keys have the queries' positions.
        dtype: of the queries.
    """
    batch, length = positions.shape
    is_counted = isinstance(length, int)
    rows = -(-window // 4)
    rows = min(rows, length) if is_counted else rows
    # A symbolic length is compared with nothing, or graphs would hold for few lengths only; for
    # the same reason there are never as few blocks as one.
    blocks = (length + rows - 1) // rows + int(not is_counted)
    columns = (window + rows + 6) // 8 * 8  # window + rows - 1 of them count; kernels like eights
    numbers = torch.arange(blocks * rows, device=positions.device).clamp(max=length - 1)
    queries = positions[:, numbers].view(batch, blocks, rows)
    offsets = torch.arange(rows - columns, rows, device=positions.device)
    if max_tokens is None:
        reached = torch.arange(blocks, device=positions.device).view(-1, 1) * rows + offsets
        keys = reached.clamp(0, length - 1)
        at = positions[:, keys]
    else:
        reached = at = queries[..., :1] + offsets
        keys = reached.clamp(0, max_tokens - 1)
    seen = visible(queries, at, window) & (reached == keys).unsqueeze(-2)
    bias = torch.where(seen, 0.0, float("-inf")).to(dtype).flatten(0, 1).unsqueeze(1)
    is_whole = is_counted and length % rows == 0
    sequences = torch.arange(batch, device=positions.device).view(-1, 1, 1)
    return Band(None if is_whole else numbers, (sequences, keys), bias)


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
        attend = self._attend if self.kind == FULL else self._attend_in_blocks
        gated = attend(queries, keys, values, step).flatten(0, 1) * gate.unsqueeze(-1)
        return self.o_proj(gated.flatten(1))

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, step: Step) -> Tensor:
        """Every query with all keys: [batch, queries, heads, dim]."""
        if step.seen is not None:
            return self._masked(queries, keys, values, step.seen)
        heads = (x.transpose(1, 2) for x in (queries, keys, values))
        out = F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2)

    def _attend_in_blocks(
        self, queries: Tensor, keys: Tensor, values: Tensor, step: Step
    ) -> Tensor:
        """Every query with the keys of its window: [batch, queries, heads, dim]."""
        batch, length = step.positions.shape
        band = step.band
        if band.queries is not None:
            queries = queries[:, band.queries]
        count, _, rows, _ = band.bias.shape
        blocks = queries.reshape(count, rows, self.num_heads, self.head_dim)
        out = self._masked(blocks, keys[band.keys], values[band.keys], band.bias)
        return out.reshape(batch, -1, self.num_heads, self.head_dim)[:, :length]

    def _masked(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Attention with a mask [batch, 1, queries, keys]: [batch, queries, heads, dim].

        Keys are repeated here because the fused kernels that accept a mask do not all accept
        grouped heads; those of one head are a view.
        """
        sizes = mask.shape[0], self.num_heads, mask.shape[-1], self.head_dim
        groups = self.num_heads // self.num_kv_heads
        per_head = (
            x.transpose(-3, -2).unsqueeze(-3).expand(*[-1] * (x.dim() - 2), groups, -1, -1)
            for x in (keys, values)
        )
        heads = queries.transpose(1, 2), *(x.reshape(sizes) for x in per_head)
        return F.scaled_dot_product_attention(*heads, attn_mask=mask).transpose(1, 2)
