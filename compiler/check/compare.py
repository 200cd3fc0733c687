"""Two graphs in one random model, on as few ranks as decide for all of the mesh."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import fx

from compiler.check.interpret import Interpreter
from compiler.check.rank_axes import RankAxes
from compiler.check.representatives import ApartError, Representatives
from compiler.check.seal import Seal, Values, narrow_values
from compiler.check.selective_reductions import Logarithms
from compiler.check.sizes import RowSizes
from compiler.ir import access
from compiler.ir.collectives import collectives
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import ReplicaGroups
from compiler.ir.row_ops import all_slice

FEW = 3
"""Coordinates of an axis to begin with: enough where no sums over it are multiplied."""

FEW_SHARING = 5
"""Coordinates of an axis whose ranks share rows, likewise."""


MANY = 8
"""Coordinates of an axis above which a report says how many are interpreted, and why."""


SELECTED = "a maximum, minimum or product over ranks counts those that differ"


@dataclass(frozen=True)
class Comparison:
    """What two graphs compute.

    Attributes:
        before: values of the source.
        after: values of the target.
        unequal: outputs that differ, by number.
        kept: the ranks that they were interpreted on.
        apart: axes of which all ranks had to be, by number, and why.
    """

    before: Values
    after: Values
    unequal: list[int]
    kept: Representatives
    apart: Mapping[int, str]

    def many_ranks(self) -> Iterator[str]:
        """Yield, per axis with more ranks interpreted than a few, how many these are and why."""
        axes, every = self.kept.axes, zip(self.kept.kept, self.kept.most, strict=True)
        for i, (kept, sums) in enumerate(every):
            if kept > MANY:
                why = self.apart.get(i, f"up to {sums} sums over them are multiplied in a value")
                n = axes.sizes[i]
                yield f"{kept:,} of {n:,} ranks along {axes.names[i]} are interpreted: {why}"


def outputs(graph: SpmdGraph) -> list[fx.Node]:
    """Return what the graph returns, in order."""
    return list(access.results(access.output(graph.graph)))


def equal(before: Values, after: Values, source: fx.Node, target: fx.Node) -> bool:
    """Return whether a value of the source and one of the target are equal on every rank."""
    if source not in before or target not in after:
        return source not in before and target not in after
    a, b = before[source], after[target]
    same = (a.cut, a.layout, a.unit, a.padded) == (b.cut, b.layout, b.unit, b.padded)
    return same and bool((a.data == b.data).all())


def compared(source: SpmdGraph, target: SpmdGraph, names: dict[str, str]) -> Comparison:
    """Return what both compute in one random model.

    Tensors in one piece are quicker to interpret, and enough unless rows are cut or gathers moved.

    Args:
        source: the source.
        target: the target.
        names: attribute of either -> a name, the same only for the same tensor.
    """
    axes = RankAxes.of(source.mesh, _groups(source, target))
    sizes = RowSizes.of((source, target), axes)
    for in_blocks in (sizes,) if sizes.cuts or not sizes.sizes else (RowSizes(), sizes):
        comparison = Comparing(source, target, names, axes, in_blocks).on_few_ranks()
        if not comparison.unequal:
            break
    return comparison


def _groups(*graphs: SpmdGraph) -> Iterator[ReplicaGroups]:
    for graph in graphs:
        for _, communication in collectives(graph.graph):
            yield graph.mesh.group(communication.group)
        for own_slice in filter(None, map(all_slice, graph.graph.nodes)):
            yield graph.mesh.group(own_slice.group)


@dataclass(frozen=True)
class Comparing:
    """Compares two graphs; attributes as of ``compared``, and of ``Comparison``."""

    source: SpmdGraph
    target: SpmdGraph
    names: dict[str, str]
    axes: RankAxes
    sizes: RowSizes
    apart: dict[int, str] = field(default_factory=dict)

    def on_few_ranks(self) -> Comparison:
        """Return the comparison on ranks that decide.

        Values that differ on some ranks differ, however few these are.
        """
        first = self.on(self._first())
        if first.unequal or first.kept.decide:
            return first
        sides = (self.source, first.before), (self.target, first.after)
        if narrow := narrow_values(sides):
            sealed = self._decided(first.kept.kept, narrow)
            if not sealed.unequal:
                return sealed
        return self._decided(first.kept.needed())

    def _first(self) -> tuple[int, ...]:
        """Return how many coordinates of each axis to begin with."""
        axes = range(len(self.axes.sizes))
        groups = _groups(self.source, self.target)
        spanned = {i for g in groups for i in self.axes.spanned(g) or axes}
        sharing = {i for layout in self.sizes.sizes.values() for i, _ in layout}
        return tuple(FEW_SHARING if i in sharing else FEW if i in spanned else 1 for i in axes)

    def _decided(self, kept: Iterable[int], sealed: Iterable[fx.Node] = ()) -> Comparison:
        """Return the comparison on so many coordinates, and on more until they decide."""
        comparison = self.on(kept, sealed)
        while not (comparison.unequal or comparison.kept.decide):
            comparison = self.on(map(max, comparison.kept.kept, comparison.kept.needed()), sealed)
        return comparison

    def on(self, kept: Iterable[int], sealed: Iterable[fx.Node] = ()) -> Comparison:
        """Return the comparison on so many coordinates, all of those that are told apart."""
        every, logarithms = range(len(self.axes.sizes)), Logarithms.of((self.source, self.target))
        if logarithms.kinds:
            self.apart.update(dict.fromkeys(every, SELECTED))
        most = zip(self.axes.sizes, kept, every, strict=True)
        own = [n if i in self.apart else min(n, k) for n, k, i in most]
        representatives, seal = Representatives(self.axes, own), Seal(sealed)
        sides = (self.source, {n: n for n in self.names}), (self.target, self.names)
        try:
            before, after = (
                Interpreter(graph, names, self.sizes, logarithms, representatives, seal).run()
                for graph, names in sides
            )
        except ApartError as error:
            self.apart.update(dict.fromkeys(error.axes, error.why))
            return self.on(own, sealed)
        pairs = zip(outputs(self.source), outputs(self.target), strict=True)
        unequal = [i for i, pair in enumerate(pairs) if not equal(before, after, *pair)]
        return Comparison(before, after, unequal, representatives, self.apart)
