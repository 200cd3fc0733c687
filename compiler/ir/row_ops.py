"""How ranks share the rows of a value, along any dimension, and gather them again.

    all_slice   this rank's block of a tensor that all ranks hold; the dual of all_gather, and local
    pad_rows    zero rows at the end, up to a multiple of the number of ranks

Rows that ranks cannot share evenly are padded: n ranks hold ceil(rows / n) each. ``all_slice`` does
so itself. Cut back with ``aten.slice``. All ranks hold the same graph: which block is this rank's
only its process groups tell: the kernel of ``all_slice`` is in ``compiler.runtime.process_groups``.
``RowSharing`` writes the nodes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from compiler.ir import access
from compiler.ir.collectives import Kind, insert

aten = torch.ops.aten
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


@dataclass
class RowSharing:
    """Writes nodes at the insertion point of the graph that their operand is in.

    Collectives cut the first dimension: those of size one that stand before rows are left out for
    them.

    Attributes:
        group: name of the replica groups that share rows.
        ranks: number of ranks in each.
        sized: number of rows -> a value in which they are whole, and the dimension.
    """

    group: str
    ranks: int
    sized: dict[str, tuple[fx.Node, int]] = field(default_factory=dict)

    def scatter(self, addends: fx.Node, rows: int | torch.SymInt, dim: int, op: str) -> fx.Node:
        """Write this rank's share of the sum of ``addends``, which has ``rows`` rows along ``dim``.

        Args:
            addends: what each rank adds.
            rows: their number.
            dim: the dimension that counts them, after others of size one.
            op: the reduction.
        """
        self.sized.setdefault(str(rows), (addends, dim))
        x = _lowered(addends, dim)
        if not divides(self.ranks, rows):
            x = _called(x, PAD_ROWS, 0, self.ranks)
        gives = resized(access.tensor(x), 0, share(rows, self.ranks))
        x = insert(Kind.REDUCE_SCATTER, x, self.group, op=op, ranks=self.ranks, gives=gives)
        return _raised(x, dim)

    def gather(
        self,
        own: fx.Node,
        rows: int | torch.SymInt,
        dim: int,
        end: int | fx.Node | None = None,
    ) -> fx.Node:
        """Write all ``rows`` rows along ``dim``, of which this rank holds ``own``.

        Args:
            own: this rank's share.
            rows: their number.
            dim: the dimension that counts them, after others of size one.
            end: a value that is that number; None: it is read off one in which they are whole.
        """
        x, even = _lowered(own, dim), divides(self.ranks, rows)
        every = rows if even else share(rows, self.ranks) * self.ranks
        gives = resized(access.tensor(x), 0, every)
        x = _raised(insert(Kind.ALL_GATHER, x, self.group, ranks=self.ranks, gives=gives), dim)
        if even:
            return x
        if end is None:
            end = rows if isinstance(rows, int) else self.count(rows)
        assert end is not None, f"no value holds all {rows} rows of %{own.name}"
        return _called(x, aten.slice.Tensor, dim, 0, end)

    def cut(self, whole: fx.Node, rows: int | torch.SymInt, dim: int) -> fx.Node:
        """Write this rank's share of ``whole``, which has ``rows`` rows along ``dim``."""
        self.sized.setdefault(str(rows), (whole, dim))
        return _called(whole, ALL_SLICE, dim, self.ranks, self.group)

    def count(self, rows: int | torch.SymInt) -> fx.Node | None:
        """Write the number of rows, read off a value in which they are whole.

        None where it is a plain number, or no such value is known.
        """
        if isinstance(rows, int) or str(rows) not in self.sized:
            return None
        x, dim = self.sized[str(rows)]
        size = x.graph.call_function(aten.sym_size.int, (x, dim))
        size.meta = {"val": rows}
        return size


def _lowered(x: fx.Node, dim: int) -> fx.Node:
    """Drop the dimensions of size one before ``dim``."""
    return _called(x, aten.squeeze.dims, list(range(dim))) if dim else x


def _raised(x: fx.Node, dim: int) -> fx.Node:
    """Add dimensions of size one before the first, which becomes ``dim``."""
    for _ in range(dim):
        x = _called(x, aten.unsqueeze.default, 0)
    return x


def _called(x: fx.Node, op: Any, *arguments: Any) -> fx.Node:
    """Write ``op`` of ``x``, with the source line of ``x``."""
    call = x.graph.call_function(op, (x, *arguments))
    examples = [a.meta["val"] if isinstance(a, fx.Node) else a for a in arguments]
    call.meta = {**x.meta, "val": op(access.tensor(x), *examples)}
    return call
