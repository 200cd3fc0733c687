"""Do two graphs compute the same, every dimension that is cut anywhere in blocks?

``compiler.check.interpret`` cuts the rows that ranks share, along one dimension, and takes every
other tensor in one piece. That is quick, and enough for what planners do. Here tensors are grids of
blocks along all dimensions (``compiler.check.single_device``), cut wherever either graph takes a
tensor apart or puts one together, and both graphs are written in few ops before
(``compiler.check.primitive_form``). The laws beyond those of one piece:

    cat(x[:k], x[k:]) = x                 blocks move, along any dimension
    all_gather, reduce_scatter, x[own]    likewise, and so what was joined, reduced and taken apart
    sum over ranks of blocks of n         the sum over a dimension of what is gathered
    max over ranks of equal values        the value

All hold of every tensor, whatever its blocks are; an op that needs a dimension whole gets its
blocks joined by a random map. Where too many blocks come together, the cuts that only pieces ask
for are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress
from math import prod

import numpy as np
from torch import fx

from compiler.check import algebra
from compiler.check.algebra import Field
from compiler.check.permutations import LinearPermutations
from compiler.check.primitive_form import primitive_form
from compiler.check.real_normal_form import real_normal_form
from compiler.check.selective_reductions import Logarithms
from compiler.check.single_device import grid
from compiler.check.single_device.cuts import Cuts, Range
from compiler.check.single_device.extrema import Extrema
from compiler.check.single_device.factors import CATS, pieces
from compiler.check.single_device.interpret import GridInterpreter, Groups
from compiler.check.single_device.relations import Dimensions
from compiler.check.single_device.writes import without_writes
from compiler.check.verdict import UnprovedError
from compiler.ir import access
from compiler.ir.collectives import OPS, WAIT, Collective
from compiler.ir.graph import SpmdGraph
from compiler.ir.placement import Replicate
from compiler.ir.rules import Call, meaning_of

MOST_BLOCKS = 1 << 20
"""Blocks of all values of both graphs on all ranks, beyond which nothing is evaluated."""


def equal_in_blocks(source: SpmdGraph, target: SpmdGraph, names: Mapping[str, str]) -> bool:
    """Return whether all outputs are shown equal.

    Args:
        source: a well-formed graph whose metadata is true.
        target: one with inputs and outputs of the same types, placed alike.
        names: attribute of either graph -> a name that two share if they hold the same tensor.
    """
    before, after = (
        primitive_form(real_normal_form(without_writes(graph), rounds=True))
        for graph in (source, target)
    )
    return any(_equal(before, after, names, in_pieces=every) for every in (True, False))


def _equal(
    source: SpmdGraph, target: SpmdGraph, names: Mapping[str, str], *, in_pieces: bool
) -> bool:
    cuts, own_names = Cuts(), {name: name for name in names}
    sides = before, after = Dimensions(source, cuts), Dimensions(target, cuts)
    outputs = [*zip(_results(source), _results(target), strict=True)]
    for u, v in (*zip(_inputs(source), _inputs(target), strict=True), *outputs):
        if access.is_operand(u):
            _unite(cuts, before.of(u), after.of(v))
    first_of: dict[str, tuple[int, ...]] = {}
    for side, named in ((before, own_names), (after, names)):
        for node in filter(access.is_tensor, access.node_of(side.graph.graph, "get_attr")):
            own = side.of(node)
            _unite(cuts, first_of.setdefault(named[str(node.target)], own), own)
        if in_pieces:
            _cut_at_pieces(side)
    cuts.solve()
    if source.mesh.size * sum(map(_count, sides)) > MOST_BLOCKS:
        return False
    shared = LinearPermutations(), Extrema(), Logarithms.of((source, target))
    try:
        first, second = (
            Evaluation(side, *shared, named).evaluated()
            for side, named in ((before, own_names), (after, names))
        )
    except UnprovedError:
        return False
    return all(_same(first[u, 0], second[v, 0]) for u, v in outputs if access.is_operand(u))


def _unite(cuts: Cuts, dims: Sequence[int], others: Sequence[int]) -> None:
    for pair in zip(dims, others, strict=True):
        cuts.unite(pair)


def _results(graph: SpmdGraph) -> tuple[fx.Node, ...]:
    return access.results(access.output(graph.graph))


def _inputs(graph: SpmdGraph) -> tuple[fx.Node, ...]:
    return access.node_of(graph.graph, "placeholder")


def _same(x: Field, y: Field) -> bool:
    return x.shape[1:] == y.shape[1:] and bool((x == y).all())


def _count(dimensions: Dimensions) -> int:
    """Return the number of blocks of all values."""
    nodes = [n for n in dimensions.graph.graph.nodes if n.op != "output" and access.is_operand(n)]
    return sum(
        prod(len(dimensions.cuts.blocks(d)) for d in dims)
        for node in nodes
        for dims in dimensions.results(node)
    )


def _cut_at_pieces(dimensions: Dimensions) -> None:
    """Cut tensors where others begin or end that are ranges of them."""
    for node, call in dimensions.calls.items():
        if (taken := pieces(call)) is None:
            continue
        (dim, ranges), read, joins = taken, access.operands(node), call.target in CATS
        for piece in ranges:
            whole = dimensions.of(node if joins else read[0])[dim]
            part = dimensions.of(read[piece.index]) if joins else dimensions.of(node, piece.index)
            for start in set(piece.starts):
                relation = Range(whole, part[dim], start, 0, piece.length, cuts=True)
                dimensions.cuts.relate(relation)


class Evaluation(GridInterpreter):
    """The values of one graph.

    Args:
        dimensions: of the graph, solved.
        permutations: shared by graphs to compare, like ``extrema`` and ``logarithms``.
        extrema: of blocks along dimensions that are cut.
        logarithms: of max, min and product over ranks.
        names: attribute -> name of the tensor behind it.
    """

    def __init__(
        self,
        dimensions: Dimensions,
        permutations: LinearPermutations,
        extrema: Extrema,
        logarithms: Logarithms,
        names: Mapping[str, str],
    ) -> None:
        """Compute nothing before ``evaluated``."""
        super().__init__(dimensions, permutations, extrema)
        self.attributes, self.logarithms = names, logarithms
        self.results: dict[tuple[fx.Node, int], Field] = {}

    def evaluated(self) -> Mapping[tuple[fx.Node, int], Field]:
        """Return the blocks of every result of every node that holds data."""
        for node in self.spmd.graph.nodes:
            if node.op == "output" or not access.is_operand(node):
                continue
            for i, data in enumerate(self._results(node)):
                if not grid.fits(data, self.dimensions.blocks(node, i)):
                    raise UnprovedError(f"%{node.name} is not cut as what it is computed from")
                self.results[node, i] = data
        return self.results

    def _results(self, node: fx.Node) -> Sequence[Field]:
        if node.op != "call_function":
            return [self._drawn(node)]
        read, index = access.operands(node), access.projection(node)
        if node.target is WAIT or index is not None:
            return [self.results[read[0], index or 0]]
        data = [self.results[x, 0] for x in read]
        return [self.communicated(node, data[0])] if node.target in OPS else self.called(node, data)

    def called(self, node: fx.Node, read: Sequence[Field]) -> list[Field]:
        """Return every result of a call; maxima of rows, and of what moves, as those of ranks."""
        if (combined := self._combined(node, read)) is not None:
            return [combined]
        results, rule = super().called(node, read), meaning_of(Call.of(node))
        chosen = None if rule is None else rule.selection
        if rule is None or chosen is None or chosen.combine or chosen.terms != rule.terms:
            return results
        if not self.logarithms.kinds or len(results) != 1:
            return results
        (data,), move = results, super().called

        def moved(logs: Sequence[Field]) -> Field:
            pairs = zip(logs, read, strict=True)
            return grid.flat(move(node, [grid.shaped(x, grid.counts(y)) for x, y in pairs])[0])

        flat = [grid.flat(x) for x in read]
        kept = self.logarithms.selected(chosen, access.dtype(node), flat, grid.flat(data), moved)
        return [grid.shaped(kept, grid.counts(data))]

    def _combined(self, node: fx.Node, read: Sequence[Field]) -> Field | None:
        """Return the maximum, minimum or product along dimensions that are cut into single rows."""
        rule = meaning_of(Call.of(node))
        chosen = None if rule is None else rule.selection
        if chosen is None or chosen.combine not in self.logarithms.kinds or len(read) != 1:
            return None
        key, (x,), (source,) = chosen.terms[0].map, read, access.operands(node)
        shape = self.dimensions.shape(source)
        along = key[1] if isinstance(key, tuple) and key[0] == "sum" else ()
        if not along or any(x.shape[1 + d] != shape[d] for d in along):
            return None
        moved = np.moveaxis(x, [1 + d for d in along], range(-2 - len(along), -2))
        rows = moved.reshape(len(x), -1, prod(shape[d] for d in along), *grid.CELL)
        total = self.logarithms.combined(chosen.combine, rows)
        return grid.shaped(total, [len(b) for b in self.dimensions.blocks(node)])

    def _drawn(self, node: fx.Node) -> Field:
        """Draw random blocks of an input: the same on ranks that hold it alike."""
        name: object = self._position.get(node, self.attributes.get(str(node.target)))
        varying = [not isinstance(p, Replicate) for p in self.spmd.inputs[str(node.target)]]
        places = [tuple(compress(at, varying)) for at in self.spmd.mesh.coordinates]
        sizes = tuple(map(len, self.dimensions.blocks(node)))
        keys = [
            [self.key("leaf", name, place, at) for at in np.ndindex(*sizes)]
            for place in (places if any(varying) else places[:1])
        ]
        return grid.shaped(algebra.random_vectors(keys), sizes)

    def _summed_over(self, reduction: Collective, x: Field, groups: Groups) -> Field | None:
        if reduction.op in ("sum", "avg"):
            return super()._summed_over(reduction, x, groups)
        among = self.spmd.mesh.group(reduction.group)
        reduced = self.logarithms.reduced_over(reduction.op, grid.flat(x), among)
        return grid.shaped(reduced, grid.counts(x))
