"""Slices and pads of values whose rows are cut into blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import sympy

from compiler.check import algebra
from compiler.check.blocks import Value
from compiler.check.sizes import divisible, padded_size
from compiler.ir import access
from compiler.ir.mesh import Mesh, ReplicaGroups
from compiler.ir.rules import Call


def sliced(
    call: Call, x: Value, ranks: int, cut: Callable[[tuple[Any, ...]], tuple[int | None, int]]
) -> Value | None:
    """Return a slice that takes everything, cuts padding off, or takes blocks; None for others.

    Args:
        call: of ``aten.slice.Tensor`` or ``aten.narrow.default``.
        x: what it slices.
        ranks: of the mesh.
        cut: the dimension that a tensor of some shape is cut along, and into how many blocks.
    """
    dim, step = call.dim(), call.arguments.get("step", 1)
    size, kept = call.shapes[0][dim], call.result[dim]
    if step == 1 and size == kept:
        return x
    if x.cut != (dim,) or step != 1:
        return None
    start, end = call.arguments.get("start"), call.arguments.get("end")
    if x.padded:
        everything = sympy.sympify(padded_size(kept, x.count) - size)
        whole = cut((kept,)) == (0, x.count) and x.unit == 1
        from_first = not isinstance(start, access.RankInt) and (start or 0) == 0
        cuts_padding = from_first and whole and everything == 0
        return replace(x, padded=False) if cuts_padding else None
    if not all(isinstance(n, int) for n in (size, kept, start)) or not isinstance(end, int | None):
        return None
    if not size or size % x.count:
        return None
    block, by_rank, taken = size // x.count, algebra.of_ranks(x.data, ranks), []
    for rank in range(ranks):
        low, high, _ = slice(*(access.on_rank(n, rank) for n in (start, end))).indices(size)
        if isinstance(length := call.arguments.get("length"), int):
            high = min(low + length, size)
        if low % block or high % block or high - low != kept or not kept:
            return None
        taken.append(by_rank[rank, low // block : high // block])
    return replace(x, data=algebra.alike(np.stack(taken)))


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
