"""What each fused op, and rows sent between ranks, mean: a composition of ATen ops and collectives.

A composition writes nodes at the end of the graph that its operands are in, one per result of the
op. They state what the op's operands imply; whoever puts them in the place of a call checks that
this is what the call states. Fused ops are their compositions. To send rows is to gather and
scatter them only around a computation that treats rows alike, which is the checker's to show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from compiler.ir import access
from compiler.ir.collectives import insert_all_reduce
from compiler.ir.dispatch import COMBINE_ROWS, DISPATCH_ROWS
from compiler.ir.fused_ops import ALL_REDUCE_NORM, SHARED_NORM
from compiler.ir.row_ops import RowSharing, resized

aten = torch.ops.aten
Composition = Callable[..., tuple[fx.Node, ...]]
"""Operands in a graph -> the results, in that graph."""


def all_reduce_norm(
    x: fx.Node, residual: fx.Node, weight: fx.Node, eps: float, offset: float, group: str
) -> tuple[fx.Node, ...]:
    """Write ``all_reduce_add_rms_norm``: every rank adds and normalizes all rows."""
    return _norm(insert_all_reduce(x.graph, x, "sum", group), residual, weight, eps, offset)


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


def gathered_rows(
    rows: Sequence[fx.Node],
    ids: fx.Node,
    first: Sequence[int],
    end: Sequence[int],
    total: int | fx.Node,
    group: str,
) -> tuple[fx.Node, ...]:
    """Write ``dispatch_rows`` where every rank is sent every row."""
    sharing, ranks = RowSharing(group, len(first)), len(first)
    count = access.value(total) if isinstance(total, fx.Node) else total
    places = ids.graph.call_function(aten.arange.default, (total,))
    counts = ids.graph.call_function(aten.zeros.default, ([2, ranks],), {"dtype": torch.int64})
    for node, sizes in ((places, [count]), (counts, [2, ranks])):
        node.meta = {**ids.meta, "val": access.tensor(ids).new_empty(sizes, dtype=torch.int64)}
    return *(sharing.gather(x, count, 0, total) for x in rows), places, counts


def scattered_rows(
    partial: fx.Node, places: fx.Node, counts: fx.Node, rows: int | fx.Node, group: str
) -> tuple[fx.Node, ...]:
    """Write ``combine_rows`` where every rank was sent every row."""
    sharing = RowSharing(group, int(access.shape(counts)[1]))
    return (sharing.scatter(partial, access.shape(partial)[0], 0, "sum"),)


FUSED: Mapping[object, Composition] = {
    ALL_REDUCE_NORM: all_reduce_norm,
    SHARED_NORM: shared_norm,
}
"""Op -> its composition, of the op's arguments in the order of its schema."""

ROWS: Mapping[object, Composition] = {DISPATCH_ROWS: gathered_rows, COMBINE_ROWS: scattered_rows}
"""Likewise, around what may get any rows."""
