"""Write a graph anew: calls whose results have stated sizes, views, slices and permutations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from compiler.ir import access
from compiler.ir.graph import SpmdGraph
from compiler.ir.row_ops import resized

aten = torch.ops.aten
SLICE = aten.slice.Tensor
VIEW = aten.reshape.default  # of any strides


class FormWriter:
    """Writes calls in a form.

    Attributes:
        source: the graph.
        target: where calls are written.
        values: node of the source -> what it is there.
    """

    def __init__(self, source: SpmdGraph) -> None:
        self.source, self.target = source, fx.Graph()
        self.values: dict[fx.Node, fx.Node] = {}

    def call(self, op: Any, like: torch.Tensor, sizes: Sequence[Any], *arguments: Any) -> fx.Node:
        """Write a call whose result is of the type of ``like``, and has ``sizes``."""
        node = self.target.call_function(op, arguments)
        node.meta["val"] = like.new_empty(tuple(sizes))
        return node

    def arguments(self, node: fx.Node) -> dict[str, Any]:
        """Return what a call reads, by name, operands in the form."""
        written = access.written_arguments(node)
        return {k: fx.node.map_arg(x, self.values.__getitem__) for k, x in written.items()}

    def view(self, x: fx.Node, sizes: Sequence[Any]) -> fx.Node:
        """Write a view; of a view, one of what that shows."""
        while x.target is VIEW and tuple(access.shape(x)) != tuple(sizes):
            (x,) = access.operands(x)
        if tuple(access.shape(x)) == tuple(sizes):
            return x
        # what is evaluated reads sizes from the metadata, and torch.fx wants none that are symbols
        written = [-1 if isinstance(size, torch.SymInt) else size for size in sizes]
        return self.call(VIEW, access.tensor(x), sizes, x, written)

    def slice(self, x: fx.Node, dim: int, start: int, end: int) -> fx.Node:
        """Write a range of one dimension."""
        if (start, end) == (0, access.shape(x)[dim]):
            return x
        sizes = resized(access.tensor(x), dim, end - start).shape
        return self.call(SLICE, access.tensor(x), sizes, x, dim, start, end)

    def cat(self, parts: Sequence[fx.Node], dim: int) -> fx.Node:
        """Write parts joined along a dimension, those without rows left out."""
        some = [x for x in parts if access.shape(x)[dim] != 0] or parts[:1]
        if len(some) == 1:
            return some[0]
        rows = sum(access.shape(x)[dim] for x in some)
        first = access.tensor(some[0])
        return self.call(aten.cat.default, first, resized(first, dim, rows).shape, list(some), dim)

    def permuted(self, x: fx.Node, order: Sequence[int]) -> fx.Node:
        """Write a permutation of the dimensions."""
        if list(order) == sorted(order):
            return x
        sizes = [access.shape(x)[d] for d in order]
        return self.call(aten.permute.default, access.tensor(x), sizes, x, list(order))
