"""Slices that begin at another row on every rank: this rank's rows, by its position in a group."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from compiler.ir import access
from compiler.ir.mesh import Mesh
from compiler.ir.rules import Call

SLICES = (torch.ops.aten.slice.Tensor, torch.ops.aten.narrow.default)


@dataclass(frozen=True)
class OwnRows:
    """A slice of the rows that are this rank's.

    Attributes:
        dim: the dimension.
        starts: where it begins, per rank.
        length: how many rows.
        group: the groups whose ranks, in order, take consecutive rows; empty: they do not.
    """

    dim: int
    starts: tuple[int, ...]
    length: int
    group: str = ""


def own_rows(node: fx.Node, mesh: Mesh) -> OwnRows | None:
    """Return what a slice takes that begins at another row on every rank; None for other calls.

    It takes consecutive rows if the ranks of a group, in order, take all rows of the operand.
    """
    if node.target not in SLICES or not access.rank_constants(node):
        return None
    call = Call.of(node)
    start, dim = call.arguments.get("start"), call.dim()
    size, length = call.shapes[0][dim], call.result[dim]
    plain = isinstance(size, int) and isinstance(length, int)
    if not isinstance(start, access.RankInt) or not plain or call.arguments.get("step", 1) != 1:
        return None
    starts = tuple(start.values)
    for name, groups in mesh.groups.items():
        own = tuple(groups.position[rank] * length for rank in range(mesh.size))
        if own == starts and groups.axis_size * length == size:
            return OwnRows(dim, starts, length, name)
    return OwnRows(dim, starts, length)


def differs_along(node: fx.Node, mesh: Mesh, axis: str) -> bool:
    """Return whether numbers of a call differ between the ranks of an axis."""
    constants = access.rank_constants(node)
    return any(
        len({c.values[rank] for rank in group}) > 1
        for c in constants
        for group in mesh.groups[axis].ranks
    )
