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


def symbols(graph: SpmdGraph) -> dict[str, str]:
    """Size symbols -> names by order of appearance in the inputs, the same in any graph."""
    names: dict[str, str] = {}
    for node in access.node_of(graph.graph, "placeholder"):
        value = node.meta.get("val")
        sizes = value.shape if isinstance(value, torch.Tensor) else [value]
        for size in sizes:
            if isinstance(size, torch.SymInt):
                for symbol in sorted(map(str, size.node.expr.free_symbols)):
                    names.setdefault(symbol, f"size{len(names)}")
    return names


def renamed(size: Any, names: Mapping[str, str]) -> Any:
    """A size with its symbols renamed."""
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
        """Those that ``graphs``, source first, share: size of all rows, and of one rank's.

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
        """A size, renamed, in terms of what it is counted in: of a multiple of 8, in eights."""
        stepped = size.free_symbols & self.steps.keys() if isinstance(size, sympy.Expr) else ()
        return size.xreplace({s: s * self.steps[s] for s in stepped}) if stepped else size

    def cut(self, shape: Sequence[Any]) -> tuple[int | None, int]:
        """The dimension that is cut, and into how many blocks."""
        cuts = ((d, self.sizes[s]) for d, s in enumerate(shape) if s != 1 and s in self.sizes)
        return next(cuts, (None, 1))


def _blocks(shared: Sequence[tuple[bool, Any, Any, int]]) -> dict[Any, int]:
    """Size -> the least numbers of blocks, n times as many for a whole as for one of n parts.

    Of sharings that contradict each other the first count.
    """
    parts: nx.DiGraph[Any] = nx.DiGraph()
    for _, whole, part, n in shared:
        apart = whole not in parts or part not in parts or not nx.has_path(
            parts.to_undirected(as_view=True), whole, part
        )  # fmt: skip
        parts.add_nodes_from((whole, part))
        if whole != part and apart:
            parts.add_edge(whole, part, ratio=Fraction(1, n))
            parts.add_edge(part, whole, ratio=Fraction(n))
    sizes_of: dict[Any, int] = {}
    for sizes in nx.weakly_connected_components(parts):
        first = next(size for _, size, *_ in shared if size in sizes)
        blocks = {first: Fraction(1)}
        for start, end in nx.bfs_edges(parts, first):
            blocks[end] = blocks[start] * parts.edges[start, end]["ratio"]
        ends = [blocks[size] for size in sizes]
        ends += [blocks[whole] / n for _, whole, part, n in shared if whole == part in sizes]
        scale = lcm(*(end.denominator for end in ends))
        sizes_of.update({size: int(blocks[size] * scale) for size in sizes})
    return sizes_of


def _steps(graph: SpmdGraph) -> dict[Any, int]:
    names = symbols(graph)
    sizes = [
        size
        for node in access.node_of(graph.graph, "placeholder")
        if isinstance(node.meta.get("val"), torch.Tensor)
        for size in access.shape(node)
        if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol
    ]
    return {renamed(size.node.expr, names): n for size in sizes if (n := step(size)) > 1}


def _shared(graph: SpmdGraph) -> Iterator[tuple[bool, Any, Any, int]]:
    """Where rows are shared: whether gathered, size of all and of one rank's, number of ranks."""
    for node in graph.graph.nodes:
        if (cut := all_slice(node)) is not None:
            yield False, _size(cut.operand, cut.dim), _size(node, cut.dim), cut.group_size
        if node.target is PAD_ROWS:
            dim = int(access.arguments(node)["dim"])
            whole = _size(access.operands(node)[0], dim)
            yield False, whole, whole, int(access.arguments(node)["multiple"])
    for node, communication in collectives(graph.graph):
        n = len(graph.mesh.group(communication.group).ranks[0])
        if (
            communication.kind is Kind.REDUCE_SCATTER
            and communication.operand.target is not PAD_ROWS
        ):
            yield False, _size(communication.operand, 0), _size(node, 0), n
        if communication.kind is Kind.ALL_GATHER:
            yield True, _size(node, 0), _size(communication.operand, 0), n


def _size(node: fx.Node, dim: int) -> Any:
    return size_key(access.shape(node)[dim])


def divisible(size: Any, count: int) -> bool:
    """Whether ``size`` is a multiple of ``count``, whatever its symbols."""
    return bool(sympy.sympify(size) % count == 0)


def padded_size(size: Any, count: int) -> Any:
    """``size`` rounded up to a multiple of ``count``, as ``compiler.ir.row_ops`` pads."""
    return FloorDiv(sympy.sympify(size) + (count - 1), count) * count
