"""Sizes of tensors, compared between two graphs; in how many blocks their rows are modelled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import lcm
from operator import attrgetter
from typing import Any

import networkx as nx
import sympy
import torch
from torch import fx
from torch.utils._sympy.functions import FloorDiv

from compiler.check.rank_axes import Layout, RankAxes, merged
from compiler.ir import access
from compiler.ir.collectives import Kind, collective, collectives
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import ReplicaGroups
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
        sizes: size -> in how many blocks, and which ranks share them.
        cuts: rows are cut between ranks somewhere, not gathered alone.
        steps: size symbol -> what divides it, in every call that the source is made for.
    """

    sizes: dict[Any, Layout] = field(default_factory=dict)
    cuts: bool = False
    steps: dict[Any, Any] = field(default_factory=dict)

    @staticmethod
    def of(graphs: Sequence[SpmdGraph], axes: RankAxes) -> RowSizes:
        """Return those that ``graphs``, source first, share: size of all rows, and of one rank's.

        Cuts come before gathers: those may also gather other things than rows.
        """
        shared = [
            _Shared(gathers, renamed(whole, names), renamed(part, names), n, axes.layout(groups, n))
            for graph in graphs
            for names in [symbols(graph)]
            for gathers, whole, part, n, groups in _shared(graph)
        ]
        blocks = _blocks(sorted(shared, key=attrgetter("gathers")))
        names, sizes = symbols(graphs[0]), input_sizes(graphs[0])
        steps = {renamed(s.node.expr, names): step(s) for s in sizes if s.node.expr.is_Symbol}
        cuts = any(not one.gathers for one in shared)
        return RowSizes(blocks, cuts, {symbol: n for symbol, n in steps.items() if n > 1})

    def in_steps(self, size: Any) -> Any:
        """Return a renamed size in terms of what it is counted in: a multiple of 8, in eights."""
        stepped = size.free_symbols & self.steps.keys() if isinstance(size, sympy.Expr) else ()
        return size.xreplace({s: s * self.steps[s] for s in stepped}) if stepped else size

    def cut(self, shape: Sequence[Any]) -> tuple[int | None, Layout]:
        """Return the dimension that is cut, and into which blocks."""
        cuts = ((d, self.sizes[s]) for d, s in enumerate(shape) if s != 1 and s in self.sizes)
        return next(cuts, (None, ()))


@dataclass(frozen=True)
class _Shared:
    """Rows that ranks share.

    Attributes:
        gathers: they are gathered, not cut.
        whole: number of all rows.
        part: of one rank's.
        n: number of ranks.
        layout: the ranks.
    """

    gathers: bool
    whole: Any
    part: Any
    n: int
    layout: Layout


def _blocks(shared: Sequence[_Shared]) -> dict[Any, Layout]:
    """Return size -> the fewest blocks, n times as many for a whole as for one of n.

    Of sharings that contradict each other the first count.
    """
    parts: nx.Graph[Any] = nx.Graph()
    for one in shared:
        parts.add_nodes_from((one.whole, one.part))
        if not nx.has_path(parts, one.whole, one.part):
            parts.add_edge(one.whole, one.part, whole=one.whole, n=one.n)
    sizes_of: dict[Any, int] = {}
    for sizes in nx.connected_components(parts):
        first = next(one.whole for one in shared if one.whole in sizes)
        blocks = {first: Fraction(1)}
        for start, end in nx.bfs_edges(parts, first):
            edge = parts.edges[start, end]
            ratio = Fraction(1, edge["n"]) if edge["whole"] == start else Fraction(edge["n"])
            blocks[end] = blocks[start] * ratio
        ends = [blocks[size] for size in sizes]
        ends += [blocks[x.whole] / x.n for x in shared if x.whole == x.part in sizes]
        scale = lcm(*(end.denominator for end in ends))
        sizes_of.update({size: int(blocks[size] * scale) for size in sizes})
    return _layouts(shared, sizes_of)


def _layouts(shared: Sequence[_Shared], counts: Mapping[Any, int]) -> dict[Any, Layout]:
    """Return size -> blocks of these numbers, the ranks that share all rows of a part outermost."""
    layouts: dict[Any, Layout] = {}
    for size in sorted(counts, key=counts.__getitem__):
        count = counts[size]
        inner = [
            (*one.layout, *layouts[one.part])
            for one in shared
            if one.whole == size and one.part in layouts and counts[one.part] * one.n == count
        ]
        alone = [
            (*one.layout, (None, count // one.n))
            for one in shared
            if one.whole == one.part == size and not count % one.n
        ]
        layouts[size] = merged(next(iter(inner + alone), ((None, count),)))
    return layouts


def _shared(graph: SpmdGraph) -> Iterator[tuple[bool, Any, Any, int, ReplicaGroups | None]]:
    """Yield where rows are shared: gathered or not, sizes of all and of a part, parts, ranks."""
    for node in graph.graph.nodes:
        if (cut := all_slice(node)) is not None:
            groups = graph.mesh.group(cut.group)
            yield False, _size(cut.operand, cut.dim), _size(node, cut.dim), cut.group_size, groups
        if node.target is PAD_ROWS:
            dim, multiple = (int(access.arguments(node)[name]) for name in ("dim", "multiple"))
            whole, share = _size(access.operands(node)[0], dim), None
            for communication in map(collective, node.users):
                if communication is not None and communication.kind is Kind.REDUCE_SCATTER:
                    share = graph.mesh.group(communication.group)
            yield False, whole, whole, multiple, share
    for node, communication in collectives(graph.graph):
        kind, operand = communication.kind, communication.operand
        groups = graph.mesh.group(communication.group)
        n = groups.axis_size
        if kind is Kind.REDUCE_SCATTER and operand.target is not PAD_ROWS:
            yield False, _size(operand, 0), _size(node, 0), n, groups
        if kind is Kind.ALL_GATHER:
            yield True, _size(node, 0), _size(operand, 0), n, groups


def _size(node: fx.Node, dim: int) -> Any:
    return size_key(access.shape(node)[dim])


def divisible(size: Any, count: int) -> bool:
    """Return whether ``size`` is a multiple of ``count``, whatever its symbols."""
    return bool(sympy.sympify(size) % count == 0)


def padded_size(size: Any, count: int) -> Any:
    """Return ``size`` rounded up to a multiple of ``count``, as ``compiler.ir.row_ops`` pads."""
    return FloorDiv(sympy.sympify(size) + (count - 1), count) * count
