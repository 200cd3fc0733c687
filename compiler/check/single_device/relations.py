"""The dimensions of one graph's values, and what its calls say about where they are cut."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from torch import fx

from compiler.check.single_device.cuts import Cuts, Range, View, ratio
from compiler.check.single_device.factors import (
    CATS,
    Piece,
    factors_of,
    is_view,
    pieces,
    row_major_groups,
)
from compiler.check.sizes import renamed, symbols
from compiler.ir import access
from compiler.ir.collectives import OPS, WAIT, Kind, collective
from compiler.ir.graph import SpmdGraph
from compiler.ir.rules import Call
from compiler.ir.rules.meaning import shape_key, size_key

Dims = tuple[int, ...]


class Dimensions:
    """Numbers in ``cuts`` of the dimensions of every value of a graph.

    Args:
        graph: a well-formed graph.
        cuts: where dimensions are cut, in this graph and the one to compare it with.
    """

    def __init__(self, graph: SpmdGraph, cuts: Cuts) -> None:
        """Relate the dimensions of all values, by calls and collectives."""
        self.graph, self.cuts = graph, cuts
        self.calls: dict[fx.Node, Call] = {}
        self._splits: list[tuple[int, tuple[Any, ...]]] = []
        self._names = symbols(graph)
        self._dims: dict[fx.Node, tuple[Dims, ...]] = {}
        for node in graph.graph.nodes:
            if node.op == "output" or not access.is_operand(node):
                continue
            shapes = [map(self.number, shape_key(x)) for x in _values(node)]
            self._dims[node] = tuple(tuple(map(cuts.add, shape)) for shape in shapes)
            if node.op == "call_function":
                self._relate(node)

    def of(self, node: fx.Node, result: int = 0) -> Dims:
        """Return the dimensions of one result of a node."""
        return self._dims[node][result]

    def results(self, node: fx.Node) -> tuple[Dims, ...]:
        """Return the dimensions of every result of a node."""
        return self._dims[node]

    def blocks(self, node: fx.Node, result: int = 0) -> list[tuple[Any, ...]]:
        """Return the sizes of the blocks along every dimension of a result."""
        return [self.cuts.blocks(d) for d in self.of(node, result)]

    def shape(self, node: fx.Node, result: int = 0) -> tuple[Any, ...]:
        """Return the sizes of a result, symbols named alike in both graphs."""
        return tuple(map(self.cuts.size, self.of(node, result)))

    def splits(self, dim: int) -> list[tuple[Any, ...]]:
        """Return the sizes of parts into which a dimension of the factor of ``dim`` is split."""
        return [sizes for other, sizes in self._splits if self.cuts.united(other, dim)]

    def number(self, size: Any) -> Any:
        """Return a size or number, symbols named alike in both graphs."""
        return renamed(size_key(size), self._names)

    def pieces(self, call: Call) -> tuple[int, tuple[Piece, ...]] | None:
        """Return the dimension of a slice, split or cat, and its ranges; None for other calls."""
        if (taken := pieces(call)) is None:
            return None
        dim, ranges = taken
        return dim, tuple(
            Piece(x.index, tuple(map(self.number, x.starts)), self.number(x.length)) for x in ranges
        )

    def _relate(self, node: fx.Node) -> None:
        read = access.operands(node)
        if node.target is WAIT:
            self._unite(self.of(read[0]), self.of(node))
        elif node.target in OPS:
            self._relate_collective(node)
        elif (index := access.projection(node)) is not None:
            self._unite(self.of(read[0], index), self.of(node))
        elif is_view(node):
            before, after = self.of(read[0]), self.of(node)
            for left, right in row_major_groups(self.shape(read[0]), self.shape(node)):
                if len(left) == len(right) == 1:
                    self.cuts.unite((before[left[0]], after[right[0]]))
                elif left and right:
                    dims = tuple(before[i] for i in left), tuple(after[j] for j in right)
                    self.cuts.relate(View(*dims))
        else:
            self._relate_factors(node)

    def _relate_collective(self, node: fx.Node) -> None:
        communication = collective(node)
        assert communication is not None, f"%{node.name} is not a collective"
        before, after = self.of(communication.operand), self.of(node)
        n = self.graph.mesh.group(communication.group).axis_size
        joins = communication.kind in (Kind.ALL_GATHER, Kind.REDUCE_SCATTER, Kind.ALL_TO_ALL)
        if not joins or n == 1 or not before:
            self._unite(before, after)
            return
        self._unite(before[1:], after[1:])
        gathers = communication.kind is Kind.ALL_GATHER
        whole, part = (after[0], before[0]) if gathers else (before[0], after[0])
        if communication.kind is Kind.ALL_TO_ALL:  # any part of one may become any of the other
            if (length := ratio(self.cuts.size(whole), n)) is None or length.denominator != 1:
                return
            for i, j in [(i, 0) for i in range(n)] + [(0, j) for j in range(1, n)]:
                start, at = i * int(length), j * int(length)
                self.cuts.relate(Range(whole, part, start, at, int(length), cuts=True))
            return
        length = self.cuts.size(part)
        for i in range(n):
            self.cuts.relate(Range(whole, part, length * i, 0, length, cuts=True))

    def _relate_factors(self, node: fx.Node) -> None:
        call = self.calls[node] = Call.of(node)
        factors = factors_of(call)
        if factors is None:
            return
        dims_of = defaultdict[Any, list[int]](list)
        operands = [self.of(x) for x in access.operands(node)]
        for dims, labels in (
            *zip(operands, factors.operands, strict=True),
            *zip(self.results(node), factors.results, strict=True),
        ):
            for dim, label in zip(dims, labels, strict=True):
                if label is not None:
                    dims_of[label].append(dim)
        for alike in dims_of.values():
            self.cuts.unite(alike)
        if (taken := self.pieces(call)) is not None:
            self._relate_pieces(node, call, *taken)

    def _relate_pieces(self, node: fx.Node, call: Call, dim: int, ranges: Any) -> None:
        read, is_cat = access.operands(node), call.target in CATS
        if not is_cat and len(ranges) > 1:
            whole = self.of(read[0])[dim]
            self._splits.append((whole, tuple(piece.length for piece in ranges)))
        joins = is_cat and self._joins_columns(read, dim)
        for piece in ranges:
            tensors = (node, read[piece.index]) if is_cat else (read[0], node)
            whole = self.of(tensors[0])[dim]
            part = self.of(tensors[1], 0 if is_cat else piece.index)[dim]
            length = self.cuts.size(part)
            if length == self.cuts.size(whole):
                self.cuts.unite((whole, part))
                continue
            for start in set(piece.starts):
                own = joins or len(piece.starts) > 1
                self.cuts.relate(Range(whole, part, start, 0, length, cuts=own))

    def _joins_columns(self, parts: Sequence[fx.Node], dim: int) -> bool:
        """Whether parts along another dimension are put side by side, as gathered columns are."""
        calls = {access.computed_by(part) for part in parts}
        split = calls.pop() if len(calls) == 1 else None
        taken = None if split not in self.calls else pieces(self.calls[split])
        return len(parts) > 1 and taken is not None and taken[0] != dim

    def _unite(self, before: Dims, after: Dims) -> None:
        for pair in zip(before, after, strict=True):
            self.cuts.unite(pair)


def _values(node: fx.Node) -> tuple[Any, ...]:
    value = node.meta.get("val")
    return tuple(value) if isinstance(value, list | tuple) else (value,)
