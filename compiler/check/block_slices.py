"""Slices and pads of values whose rows are cut into blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import sympy

from compiler.check import algebra
from compiler.check.blocks import Value
from compiler.check.rank_axes import Layout, merged
from compiler.check.representatives import ApartError, Representatives
from compiler.check.sizes import divisible, padded_size
from compiler.ir import access
from compiler.ir.mesh import Mesh, ReplicaGroups
from compiler.ir.rules import Call


def sliced(
    call: Call,
    x: Value,
    kept: Representatives,
    cut: Callable[[tuple[Any, ...]], tuple[int | None, Layout]],
) -> Value | None:
    """Return a slice that takes everything, cuts padding off, or takes blocks; None for others.

    Args:
        call: of ``aten.slice.Tensor`` or ``aten.narrow.default``.
        x: what it slices.
        kept: the ranks that are computed with.
        cut: the dimension that a tensor of some shape is cut along, and into which blocks.

    Raises:
        ApartError: it takes blocks by numbers that others than these ranks have, or by which.
    """
    dim, step = call.dim(), call.arguments.get("step", 1)
    size, rows = call.shapes[0][dim], call.result[dim]
    if step == 1 and size == rows:
        return x
    if x.cut != (dim,) or step != 1:
        return None
    if x.padded:
        everything = sympy.sympify(padded_size(rows, x.count) - size)
        whole = cut((rows,)) == (0, x.layout) and x.unit == 1
        start = call.arguments.get("start")
        from_first = not isinstance(start, access.RankInt) and (start or 0) == 0
        cuts_padding = from_first and whole and everything == 0
        return replace(x, padded=False) if cuts_padding else None
    taken = _blocks_taken(call, x, kept)
    if not taken:
        return None
    if kept.weights(x.layout) is not None:
        raise ApartError({i for i, _ in x.layout if i is not None}, "a slice takes rows by number")
    numbers = [call.arguments.get(name) for name in ("start", "end")]
    for number in numbers:
        if isinstance(number, access.RankInt):
            kept.check_alike(number.values, "a slice takes rows by numbers of ranks")
    by_rank = algebra.of_ranks(x.data, len(kept))
    limits = [tuple(access.on_rank(n, rank) for n in numbers) for rank in kept.numbers]
    own = np.stack([by_rank[i, taken[limit]] for i, limit in enumerate(limits)])
    return replace(x, data=algebra.alike(own), layout=merged([(None, own.shape[1])]))


def _blocks_taken(
    call: Call, x: Value, kept: Representatives
) -> dict[tuple[Any, ...], slice] | None:
    """Return start and end -> which blocks, all of those of one rank or another; None if not."""
    dim = call.dim()
    size, rows = call.shapes[0][dim], call.result[dim]
    start, end, length = map(call.arguments.get, ("start", "end", "length"))
    if not all(isinstance(n, int) for n in (size, rows, start)) or not isinstance(end, int | None):
        return None
    if not size or size % x.count or not rows:
        return None
    block, taken = size // x.count, dict[tuple[Any, ...], slice]()
    for limits in dict.fromkeys(zip(*(_by_rank(n, kept) for n in (start, end)), strict=True)):
        low, high, _ = slice(*limits).indices(size)
        if isinstance(length, int):
            high = min(low + length, size)
        if low % block or high % block or high - low != rows:
            return None
        taken[limits] = slice(low // block, high // block)
    return taken


def _by_rank(number: Any, kept: Representatives) -> Sequence[Any]:
    """Return a number on every rank of the mesh, all if they differ, else once."""
    return number.values if isinstance(number, access.RankInt) else [number] * kept.axes.ranks


def sharing_groups(call: Call, mesh: Mesh) -> ReplicaGroups | None:
    """Return the groups of which a slice takes every rank's own share, None if there are none."""
    start, kept = call.arguments.get("start"), call.result[call.dim()]
    rows = call.shapes[0][call.dim()]
    plain = isinstance(rows, int) and isinstance(kept, int) and call.arguments.get("step", 1) == 1
    if not plain or not kept or rows % kept or not isinstance(start, access.RankInt):
        return None
    for groups in mesh.groups.values():
        own = [groups.position[rank] * kept for rank in range(mesh.size)]
        if groups.axis_size * kept == rows and own == list(start.values):
            return groups
    return None


def padded(call: Call, x: Value) -> Value | None:
    """Return pad_rows of rows in as many blocks as it pads to; None for any other."""
    dim, multiple = call.dim(), int(call.arguments["multiple"])
    if x.cut != (dim,) or x.count != multiple or x.unit != 1:
        return None
    return replace(x, padded=x.padded or not divisible(call.shapes[0][dim], multiple))
