"""The fused ops that graphs may call: a reduction over ranks, an addition and an RMSNorm in one.

    all_reduce_add_rms_norm                  y, h of x, residual [..., hidden]
    reduce_scatter_add_rms_norm_all_gather   y [rows, hidden], h [ceil(rows / n), hidden]

both with h = sum over ranks of x + residual and y = h * rsqrt(mean(h * h) + eps) * (weight +
offset); the second holds residual and h as shards of rows, the last ones padded. What they mean is
the composition that each replaces. How they run is in ``compiler.runtime.kernels.select``.
"""

from __future__ import annotations

from typing import Any

import torch

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
"""Element types that kernels take."""
MAX_HIDDEN = 16_384
"""Widest rows that kernels take, in elements."""
SLOT_BYTES = 128 << 20
"""Payload up to which a workspace serves at most, unless asked for more; it holds two of them."""

ARGUMENTS = "Tensor x, Tensor residual, Tensor weight, float eps, float offset"
torch.library.define(
    "commplan::all_reduce_add_rms_norm", f"({ARGUMENTS}, str group_name) -> (Tensor, Tensor)"
)
torch.library.define(
    "commplan::reduce_scatter_add_rms_norm_all_gather",
    f"({ARGUMENTS}, int group_size, str group_name) -> (Tensor, Tensor)",
)
ALL_REDUCE_NORM = torch.ops.commplan.all_reduce_add_rms_norm.default
SHARED_NORM = torch.ops.commplan.reduce_scatter_add_rms_norm_all_gather.default


def why_unsupported(hidden: int | torch.SymInt, dtype: torch.dtype) -> str | None:
    """Return why no kernel takes rows of this width and element type, or None."""
    if not isinstance(hidden, int):
        return "the width of its rows is symbolic"
    if dtype not in DTYPES:
        return f"{dtype} is not one of {', '.join(map(str, DTYPES))}"
    if hidden > MAX_HIDDEN:
        return f"hidden {hidden} is over {MAX_HIDDEN}"
    return None


def _fake(x: torch.Tensor, residual: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), residual.new_empty(residual.shape)


for _op in (ALL_REDUCE_NORM, SHARED_NORM):
    torch.library.register_fake(_op, _fake)
