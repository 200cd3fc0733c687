"""The fused ops that graphs may call: a reduction over ranks, an addition and an RMSNorm in one.

    all_reduce_add_rms_norm                  y, h of x, residual [..., hidden]
    reduce_scatter_add_rms_norm_all_gather   y [rows, hidden], h [ceil(rows / n), hidden]

both with h = sum over ranks of x + residual and y = h * rsqrt(mean(h * h) + eps) * (weight +
offset); the second holds residual and h as shards of rows, the last ones padded. What they mean is
the composition of ATen ops and collectives that each replaces: it writes nodes at the end of the
graph that its operands are in, one per result, which state what the operands imply; whoever puts
them in the place of a call checks that this is what the call states. How they run is in
``compiler.runtime.kernels.select``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from compiler.ir import access
from compiler.ir.collectives import Kind, insert
from compiler.ir.row_ops import RowSharing, resized

aten = torch.ops.aten
Composition = Callable[..., tuple[fx.Node, ...]]
"""Operands in a graph -> the results, in that graph."""

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


def all_reduce_norm(
    x: fx.Node, residual: fx.Node, weight: fx.Node, eps: float, offset: float, group: str
) -> tuple[fx.Node, ...]:
    """Write ``all_reduce_add_rms_norm``: every rank adds and normalizes all rows."""
    return _norm(insert(Kind.ALL_REDUCE, x, group, op="sum"), residual, weight, eps, offset)


def shared_norm(
    x: fx.Node,
    residual: fx.Node,
    weight: fx.Node,
    eps: float,
    offset: float,
    ranks: int,
    group: str,
) -> tuple[fx.Node, ...]:
    """Write ``reduce_scatter_add_rms_norm_all_gather``: each rank, its own rows, then gathered."""
    sharing, rows = RowSharing(group, ranks), access.shape(x)[0]
    total = sharing.scatter(x, rows, 0, "sum")
    y, h = _norm(total, residual, weight, eps, offset)
    return sharing.gather(y, rows, 0), h


def _norm(
    total: fx.Node, residual: fx.Node, weight: fx.Node, eps: float, offset: float
) -> tuple[fx.Node, fx.Node]:
    """Write y = h * rsqrt(mean(h * h) + eps) * (weight + offset), h = total + residual."""
    rows, of_weight = access.tensor(residual), access.shape(weight)
    column, factors = resized(rows, -1, 1), access.tensor(residual).new_empty(of_weight)

    def write(op: Any, gives: torch.Tensor, *arguments: Any) -> fx.Node:
        node = total.graph.call_function(op, arguments)
        node.meta = {**total.meta, "val": gives}
        return node

    h = write(aten.add.Tensor, rows, total, residual)
    mean = write(aten.mean.dim, column, write(aten.mul.Tensor, rows, h, h), [-1], True)
    root = write(aten.rsqrt.default, column, write(aten.add.Tensor, column, mean, eps))
    if access.dtype(weight) != rows.dtype:
        weight = write(aten.to.dtype, factors, weight, rows.dtype)
    factor = write(aten.add.Tensor, factors, weight, offset)
    return write(aten.mul.Tensor, rows, write(aten.mul.Tensor, rows, h, root), factor), h


FUSED: Mapping[object, Composition] = {
    ALL_REDUCE_NORM: all_reduce_norm,
    SHARED_NORM: shared_norm,
}
"""Op -> its composition, of the op's arguments in the order of its schema."""
