"""Ops that cut rows between ranks, and back.

    all_slice   this rank's block of a tensor that all ranks hold; the dual of all_gather, and local
    pad_rows    zero rows at the end, up to a multiple of the number of ranks

Rows that ranks cannot share evenly are padded: n ranks hold ceil(rows / n) each. ``all_slice`` does
so itself. Cut back with ``aten.slice``. All ranks hold the same graph: which block is this rank's
only its process groups tell: the kernel of ``all_slice`` is in ``compiler.runtime.process_groups``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from compiler.ir import access

torch.library.define(
    "commplan::all_slice", "(Tensor self, int dim, int group_size, str group_name) -> Tensor"
)
torch.library.define("commplan::pad_rows", "(Tensor self, int dim, int multiple) -> Tensor")

ALL_SLICE = torch.ops.commplan.all_slice.default
PAD_ROWS = torch.ops.commplan.pad_rows.default

AUTHORED = "rows_shared_by_the_author"
"""Key in the ``meta`` of a value that all ranks hold alike: the replica groups over which each
rank held its own rows of it in the source."""


@dataclass(frozen=True)
class AllSlice:
    """One all_slice call: its operand, the dimension it cuts, and among which ranks."""

    operand: fx.Node
    dim: int
    group: str
    group_size: int


def all_slice(node: fx.Node) -> AllSlice | None:
    """Return the all_slice that ``node`` calls, or None."""
    if node.target is not ALL_SLICE:
        return None
    arguments = access.arguments(node)
    (operand,) = access.operands(node)
    dim = int(arguments["dim"]) % len(access.shape(operand))
    return AllSlice(operand, dim, str(arguments["group_name"]), int(arguments["group_size"]))


def divides(ranks: int, rows: int | torch.SymInt) -> bool:
    """Return whether ``ranks`` ranks share ``rows`` rows evenly, whatever the value of symbols."""
    return statically_known_true(rows % ranks == 0)


def share(rows: int | torch.SymInt, ranks: int) -> int | torch.SymInt:
    """Return how many of ``rows`` rows each of ``ranks`` ranks holds: the quotient, rounded up."""
    if divides(ranks, rows):
        return rows // ranks
    return (rows + (ranks - 1)) // ranks


def resized(x: torch.Tensor, dim: int, size: int | torch.SymInt) -> torch.Tensor:
    """Return an empty tensor like ``x`` with ``size`` rows along ``dim``."""
    return x.new_empty([size if d == dim % x.dim() else s for d, s in enumerate(x.shape)])


def padded(x: torch.Tensor, dim: int, size: int | torch.SymInt) -> torch.Tensor:
    """Return ``x`` with zero rows at the end of ``dim``, ``size`` in all; ``x`` if it has them."""
    missing = size - x.shape[dim]
    return torch.cat([x, torch.zeros_like(resized(x, dim, missing))], dim) if missing else x


def own_share(x: torch.Tensor, dim: int, ranks: int, position: int) -> torch.Tensor:
    """Return the rows that the rank at ``position`` of ``ranks`` holds, zero rows at the end."""
    rows, size = x.shape[dim], share(x.shape[dim], ranks)
    start = min(position * size, rows)
    return padded(x.narrow(dim, start, min(size, rows - start)), dim, size)


def _all_slice(x: torch.Tensor, dim: int, group_size: int, group_name: str) -> torch.Tensor:
    return resized(x, dim, share(x.shape[dim], group_size))


def padded_rows(x: torch.Tensor, dim: int, multiple: int) -> torch.Tensor:
    """Run ``pad_rows``; return ``x`` itself where nothing is missing."""
    return padded(x, dim, share(x.shape[dim], multiple) * multiple)


def _pad_rows(x: torch.Tensor, dim: int, multiple: int) -> torch.Tensor:
    padded = padded_rows(x, dim, multiple)
    return padded.clone() if padded is x else padded


def _pad_rows_shape(x: torch.Tensor, dim: int, multiple: int) -> torch.Tensor:
    return resized(x, dim, share(x.shape[dim], multiple) * multiple)


torch.library.register_fake("commplan::all_slice", _all_slice)
torch.library.register_fake("commplan::pad_rows", _pad_rows_shape)
torch.library.impl("commplan::pad_rows", ("cpu", "cuda"), _pad_rows)
