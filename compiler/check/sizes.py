"""Sizes of tensors, compared between two graphs; in how many blocks their rows are modelled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import lcm
from typing import Any

import networkx as nx
import sympy
import torch
from torch import fx
from torch.utils._sympy.functions import FloorDiv

from compiler.ir import access
from compiler.ir.collectives import Kind, collectives
from compiler.ir.graph import SpmdGraph
from compiler.ir.row_ops import PAD_ROWS, all_slice
from compiler.ir.rules.meaning import size_key, step


def input_sizes(graph: SpmdGraph) -> Iterator[torch.SymInt]:
    """Yield the symbolic sizes of the inputs, and inputs that are symbolic numbers, in order."""
    for node in access.node_of(graph.graph, "placeholder"):
        value = node.meta.get("val")
        sizes = value.shape if isinstance(value, torch.Tensor) else [value]
        yield from (size for size in sizes if isinstance(size, torch.SymInt))


def symbols(graph: SpmdGraph) -> dict[str, str]:
    """Return size symbols -> names by order of appearance in the inputs, the same in any graph."""
    names: dict[str, str] = {}
    for size in input_sizes(graph):
        for symbol in sorted(map(str, size.node.expr.free_symbols)):
            names.setdefault(symbol, f"size{len(names)}")
    return names


def renamed(size: Any, names: Mapping[str, str]) -> Any:
    """Return a size with its symbols renamed."""
    if not names or not isinstance(size, sympy.Expr):
        return size
    renames = {s: names[str(s)] for s in size.free_symbols if str(s) in names}
    return size.xreplace(
        {s: sympy.Symbol(n, integer=True, positive=True) for s, n in renames.items()}
    )


@dataclass(frozen=True)
class RowSizes:
    """In how many blocks tensors with a dimension of some size are modelled.

    As few as all that share rows of a size, or of a size made from it, can do with.

    Attributes:
        sizes: size -> number of blocks.
        cuts: rows are cut between ranks somewhere, not gathered alone.
        steps: size symbol -> what divides it, in every call that the source is made for.
    """

    sizes: dict[Any, int] = field(default_factory=dict)
    cuts: bool = False
    steps: dict[Any, Any] = field(default_factory=dict)

    @staticmethod
    def of(graphs: Sequence[SpmdGraph]) -> RowSizes:
        """Return those that ``graphs``, source first, share: size of all rows, and of one rank's.

        Cuts come before gathers: those may also gather other things than rows.
        """
        shared = [
            (gathers, renamed(whole, names), renamed(part, names), n)
            for graph in graphs
            for names in [symbols(graph)]
            for gathers, whole, part, n in _shared(graph)
        ]
        blocks = _blocks(sorted(shared, key=lambda one: one[0]))
        return RowSizes(blocks, any(not gathers for gathers, *_ in shared), _steps(graphs[0]))

    def in_steps(self, size: Any) -> Any:
        """Return a renamed size in terms of what it is counted in: a multiple of 8, in eights."""
        stepped = size.free_symbols & self.steps.keys() if isinstance(size, sympy.Expr) else ()
        return size.xreplace({s: s * self.steps[s] for s in stepped}) if stepped else size

    def cut(self, shape: Sequence[Any]) -> tuple[int | None, int]:
        """Return the dimension that is cut, and into how many blocks."""
        cuts = ((d, self.sizes[s]) for d, s in enumerate(shape) if s != 1 and s in self.sizes)
        return next(cuts, (None, 1))


def _blocks(shared: Sequence[tuple[bool, Any, Any, int]]) -> dict[Any, int]:
    """Return size -> the least number of blocks, n times as many for a whole as for one of n.

    Of sharings that contradict each other the first count.
    """
    parts: nx.Graph[Any] = nx.Graph()
    for _, whole, part, n in shared:
        parts.add_nodes_from((whole, part))
        if not nx.has_path(parts, whole, part):
            parts.add_edge(whole, part, whole=whole, n=n)
    sizes_of: dict[Any, int] = {}
    for sizes in nx.connected_components(parts):
        first = next(size for _, size, *_ in shared if size in sizes)
        blocks = {first: Fraction(1)}
        for start, end in nx.bfs_edges(parts, first):
            edge = parts.edges[start, end]
            ratio = Fraction(1, edge["n"]) if edge["whole"] == start else Fraction(edge["n"])
            blocks[end] = blocks[start] * ratio
        ends = [blocks[size] for size in sizes]
        ends += [blocks[whole] / n for _, whole, part, n in shared if whole == part in sizes]
        scale = lcm(*(end.denominator for end in ends))
        sizes_of.update({size: int(blocks[size] * scale) for size in sizes})
    return sizes_of


def _steps(graph: SpmdGraph) -> dict[Any, int]:
    names = symbols(graph)
    sizes = (size for size in input_sizes(graph) if size.node.expr.is_Symbol)
    return {renamed(size.node.expr, names): n for size in sizes if (n := step(size)) > 1}


def _shared(graph: SpmdGraph) -> Iterator[tuple[bool, Any, Any, int]]:
    """Yield where rows are shared: whether gathered, size of all and of one rank's, ranks."""
    for node in graph.graph.nodes:
        if (cut := all_slice(node)) is not None:
            yield False, _size(cut.operand, cut.dim), _size(node, cut.dim), cut.group_size
        if node.target is PAD_ROWS:
            dim = int(access.arguments(node)["dim"])
            whole = _size(access.operands(node)[0], dim)
            yield False, whole, whole, int(access.arguments(node)["multiple"])
    for node, communication in collectives(graph.graph):
        kind, operand = communication.kind, communication.operand
        n = graph.mesh.group(communication.group).axis_size
        if kind is Kind.REDUCE_SCATTER and operand.target is not PAD_ROWS:
            yield False, _size(operand, 0), _size(node, 0), n
        if kind is Kind.ALL_GATHER:
            yield True, _size(node, 0), _size(operand, 0), n


def _size(node: fx.Node, dim: int) -> Any:
    return size_key(access.shape(node)[dim])


def divisible(size: Any, count: int) -> bool:
    """Return whether ``size`` is a multiple of ``count``, whatever its symbols."""
    return bool(sympy.sympify(size) % count == 0)


def padded_size(size: Any, count: int) -> Any:
    """Return ``size`` rounded up to a multiple of ``count``, as ``compiler.ir.row_ops`` pads."""
    return FloorDiv(sympy.sympify(size) + (count - 1), count) * count
