"""Nodes by which ranks share the rows of a value, along any dimension, and gather them again.

    scatter   this rank's share of a sum over ranks, by reduce_scatter
    gather    all rows, from every rank's share, by all_gather
    cut       this rank's share of what it holds whole, by all_slice; local

Collectives cut the first dimension: those of size one that stand before rows are left out for them.
Rows that ranks cannot share evenly are padded first, and cut off where they are gathered.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from compiler.ir import access
from compiler.ir.collectives import insert_all_gather, insert_reduce_scatter
from compiler.ir.row_ops import ALL_SLICE, PAD_ROWS, divides, resized, share

aten = torch.ops.aten


@dataclass
class RowSharing:
    """Writes them at the insertion point of the graph that their operand is in.

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
        x = insert_reduce_scatter(x.graph, x, op, self.group, self.ranks, gives)
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
        x = _raised(insert_all_gather(x.graph, x, self.group, self.ranks, gives), dim)
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
