"""Where dimensions are cut into blocks, found for two graphs at once before any value is computed.

A point is a fraction of a dimension's size. Dimensions that are one factor of an op share their
points, also where their sizes differ: 8 query heads and 2 key heads are both cut at 1/2. A range of
a dimension hands its points on to the tensor that it becomes, and back; so do the dimensions that a
view joins or takes apart. Points are added until nothing changes.

No value depends on this search being complete: an op whose operands are not cut as it needs them
joins the blocks first.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import floor, prod
from typing import Any

import sympy

MOST_BLOCKS = 1024
"""Blocks that one dimension may have; beyond, views refuse to take it apart into single rows."""


@dataclass(frozen=True)
class Range:
    """``part[at : at + length] = whole[start : start + length]``.

    Attributes:
        whole: number of a dimension.
        part: number of another.
        start: first index in the whole.
        at: first index in the part.
        length: how many.
        cuts: it is cut there whether or not one of the two is cut already.
    """

    whole: int
    part: int
    start: Any
    at: Any
    length: Any
    cuts: bool = False


@dataclass(frozen=True)
class View:
    """Dimensions, from the outermost in, that hold the same elements in row-major order."""

    before: tuple[int, ...]
    after: tuple[int, ...]


class Cuts:
    """Dimensions, numbered, and the points at which each is cut."""

    def __init__(self) -> None:
        self._sizes: list[Any] = []
        self._parents: list[int] = []
        self._points: dict[int, set[Fraction]] = defaultdict(set)
        self._relations: dict[Range | View, None] = {}

    def add(self, size: Any) -> int:
        """Return the number of a new dimension."""
        self._sizes.append(size)
        self._parents.append(len(self._parents))
        return len(self._parents) - 1

    def size(self, dim: int) -> Any:
        """Return the size of a dimension."""
        return self._sizes[dim]

    def unite(self, dims: Iterable[int]) -> None:
        """Let dimensions share their points; those of size one have none."""
        roots = [self._root(d) for d in dims if self._sizes[d] != 1]
        for root in roots[1:]:
            self._parents[self._root(root)] = self._root(roots[0])

    def united(self, dim: int, other: int) -> bool:
        """Whether two dimensions share their points."""
        return self._root(dim) == self._root(other)

    def relate(self, relation: Range | View) -> None:
        """Hand on points between dimensions."""
        self._relations[relation] = None

    def points(self, dim: int) -> frozenset[Fraction]:
        """Return the points inside a dimension."""
        return frozenset(self._points.get(self._root(dim), ()))

    def bounds(self, dim: int) -> list[Fraction]:
        """Return the points of a dimension with both of its ends."""
        inside = self._points.get(self._root(dim), ()) if self._sizes[dim] != 1 else ()
        return [Fraction(0), *sorted(inside), Fraction(1)]

    def blocks(self, dim: int) -> tuple[Any, ...]:
        """Return the sizes of the blocks of a dimension."""
        size, bounds = self._sizes[dim], self.bounds(dim)
        if len(bounds) == 2:
            return (size,)
        return tuple(_times(size, b - a) for a, b in pairwise(bounds))

    def offsets(self, dim: int) -> list[Any]:
        """Return where the blocks of a dimension begin, and where the last ends."""
        return [_times(self._sizes[dim], bound) for bound in self.bounds(dim)]

    def solve(self) -> None:
        """Hand on points until nothing changes."""
        self._members = defaultdict[int, set[Any]](set)
        for dim, size in enumerate(self._sizes):
            self._members[self._root(dim)].add(size)
        readers = defaultdict[int, list[Range | View]](list)
        for relation in self._relations:
            for dim in _dims(relation):
                readers[self._root(dim)].append(relation)
        queue = deque(self._relations)
        waiting = set(queue)
        while queue:
            relation = queue.popleft()
            waiting.discard(relation)
            handed = _by_range if isinstance(relation, Range) else _by_view
            for dim, points in handed(self, relation):  # type: ignore[arg-type]
                if self._put(dim, points):
                    fresh = [r for r in readers[self._root(dim)] if r not in waiting]
                    queue.extend(fresh)
                    waiting.update(fresh)

    def _root(self, dim: int) -> int:
        while (parent := self._parents[dim]) != dim:
            self._parents[dim] = self._parents[parent]
            dim = parent
        return dim

    def _put(self, dim: int, points: Iterable[Fraction]) -> bool:
        """Add the points at which every dimension of the factor can be cut; whether any is new."""
        root = self._root(dim)
        own, sizes = self._points[root], self._members[root]
        fresh = {p for p in points if 0 < p < 1} - own
        fresh = {p for p in fresh if all(_whole(size, p) for size in sizes)}
        if self._sizes[dim] == 1 or not fresh or len(own) + len(fresh) >= MOST_BLOCKS:
            return False
        own |= fresh
        return True


def _dims(relation: Range | View) -> tuple[int, ...]:
    if isinstance(relation, Range):
        return relation.whole, relation.part
    return (*relation.before, *relation.after)


def _whole(size: Any, point: Fraction) -> bool:
    """Whether a point lies between two rows, whatever the symbols of the size."""
    if isinstance(size, int):
        return size % point.denominator == 0
    return bool((size / point.denominator).is_integer)


def _times(size: Any, part: Fraction) -> Any:
    if isinstance(size, int):
        return int(size * part)
    return sympy.expand(size * sympy.Rational(part.numerator, part.denominator))


def ratio(size: Any, other: Any) -> Fraction | None:
    """Return ``size / other`` if that is the same number for all values of symbols."""
    if isinstance(size, int) and isinstance(other, int):
        return Fraction(size, other) if other else None
    quotient = sympy.cancel(sympy.sympify(size) / sympy.sympify(other))
    return Fraction(int(quotient.p), int(quotient.q)) if quotient.is_Rational else None


Handed = Iterable[tuple[int, set[Fraction]]]
"""Dimension -> points that it should have."""


def _by_range(cuts: Cuts, relation: Range) -> Handed:
    whole, part = cuts.points(relation.whole), cuts.points(relation.part)
    if not (relation.cuts or whole or part):
        return
    sizes = cuts.size(relation.whole), cuts.size(relation.part)
    start, length = (ratio(n, sizes[0]) for n in (relation.start, relation.length))
    at, own_length = (ratio(n, sizes[1]) for n in (relation.at, relation.length))
    if start is None or length is None or at is None or own_length is None or not length:
        return
    scale = length / own_length
    inside = {start + (p - at) * scale for p in part if at < p < at + own_length}
    yield relation.whole, {start, start + length} | inside
    inside = {at + (p - start) / scale for p in whole if start < p < start + length}
    yield relation.part, {at, at + own_length} | inside


def _by_view(cuts: Cuts, relation: View) -> Handed:
    points = {
        p for side in (relation.before, relation.after) for p in row_major_points(cuts, side) or ()
    }
    if not points:
        return
    sides = [_taken_apart(cuts, side, points) for side in (relation.before, relation.after)]
    for side in sides:
        if side is None:
            return
    for side in sides:
        yield from side or ()


def row_major_points(cuts: Cuts, dims: Sequence[int]) -> set[Fraction] | None:
    """Return where the rows of dimensions, joined, are cut; None where blocks are not contiguous.

    Blocks along one dimension are contiguous if those outside of it are cut into single rows.
    """
    cut = [i for i, d in enumerate(dims) if cuts.points(d)]
    if not cut:
        return set()
    sizes = [cuts.size(d) for d in dims[: cut[-1]]]
    if not all(isinstance(size, int) for size in sizes) or prod(sizes) > MOST_BLOCKS:
        return None
    rows = prod(sizes)
    own = cuts.bounds(dims[cut[-1]])[:-1]
    return {Fraction(i, rows) + p / rows for i in range(rows) for p in own} - {Fraction(0)}


def is_contiguous(cuts: Cuts, dims: Sequence[int]) -> bool:
    """Whether all dimensions outside the last one that is cut are cut into single rows."""
    cut = [i for i, d in enumerate(dims) if cuts.points(d)]
    outer = dims[: cut[-1]] if cut else ()
    return all(len(cuts.blocks(d)) == cuts.size(d) for d in outer)


def _taken_apart(
    cuts: Cuts, dims: Sequence[int], points: set[Fraction]
) -> list[tuple[int, set[Fraction]]] | None:
    """Points of each dimension that cut the joined rows at ``points``; None if there are none."""
    own: list[tuple[int, set[Fraction]]] = []
    for dim in dims:
        size = cuts.size(dim)
        if not points:
            return own
        if size == 1:
            continue
        if all(_whole(size, p) for p in points):
            return [*own, (dim, points)]
        if not isinstance(size, int) or size > MOST_BLOCKS:
            return None
        own.append((dim, {Fraction(i, size) for i in range(1, size)}))
        points = {p * size - floor(p * size) for p in points} - {Fraction(0)}
    return None if points else own
