"""Axes of a mesh, split until every replica group is a product of some; blocks named by them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from compiler.ir.mesh import Mesh, ReplicaGroups

Layout = tuple[tuple[int | None, int], ...]
"""How many blocks rows are cut into, outermost first, each time by the ranks of an axis (its
number), or by number (None)."""


def merged(layout: Iterable[tuple[int | None, int]]) -> Layout:
    """Return a layout with neighbours that are cut by number in one, and none of one block."""
    result: list[tuple[int | None, int]] = []
    for axis, n in layout:
        if n == 1 and axis is None:
            continue
        if axis is None and result and result[-1][0] is None:
            result[-1] = (None, result[-1][1] * n)
        else:
            result.append((axis, n))
    return tuple(result)


@dataclass(frozen=True, eq=False)
class RankAxes:
    """Axes that multiply to a mesh.

    Attributes:
        sizes: numbers of coordinates, outermost first.
        parents: the axis of the mesh that each is a part of, by number.
        names: for reports.
    """

    sizes: tuple[int, ...]
    parents: tuple[int, ...]
    names: tuple[str, ...]
    _spanned: dict[ReplicaGroups, tuple[int, ...] | None] = field(default_factory=dict)

    @staticmethod
    def of(mesh: Mesh, groups: Iterable[ReplicaGroups]) -> RankAxes:
        """Return the axes of ``mesh``, split where that makes ``groups`` products of axes."""
        plain = RankAxes(tuple(mesh.axes.values()), tuple(range(len(mesh.axes))), tuple(mesh.axes))
        listed = [g for g in dict.fromkeys(groups) if plain.spanned(g) is None]
        if not listed:
            return plain
        strides = {math.prod(plain.sizes[i:]) for i in range(len(plain.sizes) + 1)}
        for one in listed:
            strides |= _strides(sorted(one.group_of[0]))
        chain = sorted(strides, reverse=True)
        if any(a % b for a, b in itertools.pairwise(chain)):
            return plain
        sizes, parents, names = [], [], []
        for outer, inner in itertools.pairwise(chain):
            parent = max(i for i in range(len(plain.sizes)) if math.prod(plain.sizes[i:]) >= outer)
            sizes.append(outer // inner)
            parents.append(parent)
            names.append(plain.names[parent])
        return RankAxes(tuple(sizes), tuple(parents), tuple(names))

    @property
    def ranks(self) -> int:
        """Return the number of ranks of the mesh."""
        return math.prod(self.sizes)

    def numbers(self, coordinates: Sequence[Sequence[int]]) -> tuple[int, ...]:
        """Return the ranks at coordinates."""
        strides = [math.prod(self.sizes[i + 1 :]) for i in range(len(self.sizes))]
        return tuple(sum(c * s for c, s in zip(at, strides, strict=True)) for at in coordinates)

    def varying(self, values: Sequence[object]) -> set[int]:
        """Return the axes along which numbers of ranks differ."""
        every = np.asarray(values).reshape(self.sizes)
        axes = range(len(self.sizes))
        return {i for i in axes if not (every == every.take([0], axis=i)).all()}

    def layout(self, groups: ReplicaGroups | None, ranks: int) -> Layout:
        """Return the blocks of rows that ``groups`` share: one for each of ``ranks`` ranks."""
        spanned = None if groups is None else self.spanned(groups)
        if spanned is None:
            return ((None, ranks),)
        return tuple((i, self.sizes[i]) for i in spanned)

    def spanned(self, groups: ReplicaGroups) -> tuple[int, ...] | None:
        """Return the axes that ``groups`` span; None if they are not a product, in its order."""
        if groups not in self._spanned:
            self._spanned[groups] = self._product(groups)
        return self._spanned[groups]

    def _product(self, groups: ReplicaGroups) -> tuple[int, ...] | None:
        members, grid = np.asarray(groups.ranks), np.arange(self.ranks)
        first = np.stack(np.unravel_index(np.asarray(groups.group_of[0]), self.sizes))
        axes = tuple(i for i, n in enumerate(self.sizes) if n > 1 and first[i].any())
        others = [i for i in range(len(self.sizes)) if i not in axes]
        product = grid.reshape(self.sizes).transpose(*others, *axes)
        if math.prod(self.sizes[i] for i in axes) != groups.axis_size:
            return None
        return axes if np.array_equal(product.reshape(members.shape), members) else None


def _strides(members: Sequence[int]) -> set[int]:
    """Return where a group's ranks, of which rank 0 is one, begin and cease to be evenly spaced."""
    strides, repeated = set[int](), 1
    while repeated < len(members):
        step, times = members[repeated], 1
        while repeated * times < len(members) and members[repeated * times] == step * times:
            times += 1
        strides |= {step, step * times}
        repeated *= times
    return strides
