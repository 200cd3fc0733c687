"""Ranks that stand for all others: which, how many each, and whether they are enough.

In the random model a rank is a name. What it holds of an input, its constants, its place in a
gather are draws of its own, so that permuting the coordinates of a mesh axis, and with them the
blocks of rows that its ranks share, renames draws and nothing else. Some coordinates of an axis
then decide: the last that is kept stands for all left out, and counts as often in sums. How many
must be kept is counted while graphs are interpreted; ``docs/ranks.md`` has the proof.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from compiler.check.algebra import Field
from compiler.check.rank_axes import Layout, RankAxes, merged
from compiler.ir.mesh import Mesh, ReplicaGroups
from compiler.ir.placement import Placements, Replicate

Sums = tuple[int, ...]
"""Per axis, how many sums over it are multiplied with each other in a value at most."""


class ApartError(Exception):
    """Ranks of some axes are told apart by number, so that none can stand for others.

    Attributes:
        axes: numbers of the axes.
        why: what tells them apart.
    """

    def __init__(self, axes: Iterable[int], why: str) -> None:
        super().__init__(why)
        self.axes, self.why = frozenset(axes), why


@dataclass(frozen=True, eq=False)
class Members:
    """Replica groups among the ranks that are kept.

    Attributes:
        ranks: kept ranks, [groups, members].
        weights: how many ranks each member stands for; None: one.
        size: number of ranks in a group of the mesh.
        layout: how many blocks they share rows in.
        position: kept rank -> its place in its group.
        named: ``layout`` if it tells these groups from others whose members stand for others,
            else ().
    """

    ranks: npt.NDArray[np.intp]
    weights: npt.NDArray[np.uint64] | None
    size: int
    layout: Layout
    position: Sequence[int]
    named: Layout


class Representatives:
    """The ranks that two graphs are interpreted on.

    Args:
        axes: of the mesh, split until every group is a product of some.
        kept: per axis, how many coordinates are kept; all, or one or more.
    """

    def __init__(self, axes: RankAxes, kept: Sequence[int]) -> None:
        self.axes, self.kept = axes, tuple(kept)
        self.fewer = frozenset(i for i, n in enumerate(axes.sizes) if kept[i] < n)
        self.coordinates = list(itertools.product(*map(range, kept)))
        self.numbers = axes.numbers(self.coordinates)
        self.none: Sums = (0,) * len(self.kept)
        self.most, self.indices = self.none, [1] * len(self.kept)
        self._members: dict[ReplicaGroups, Members] = {}

    @staticmethod
    def all_of(mesh: Mesh) -> Representatives:
        """Return all ranks of ``mesh``."""
        axes = RankAxes.of(mesh, ())
        return Representatives(axes, axes.sizes)

    def on_all(self) -> Representatives:
        """Return all ranks, by the same axes."""
        return Representatives(self.axes, self.axes.sizes)

    @cached_property
    def stand_in(self) -> Sequence[int]:
        """Return, per rank of the mesh, the place of the one that stands for it."""
        every = np.unravel_index(np.arange(self.axes.ranks), self.axes.sizes)
        own = [np.minimum(at, n - 1) for at, n in zip(every, self.kept, strict=True)]
        places: list[int] = np.ravel_multi_index(own, self.kept).tolist()
        return places

    def __len__(self) -> int:
        return len(self.numbers)

    def places(self, placements: Placements) -> list[tuple[int, ...]]:
        """Return, per rank, its coordinates in the axes along which an input may vary."""
        varying = [not isinstance(placements[p], Replicate) for p in self.axes.parents]
        return [tuple(itertools.compress(at, varying)) for at in self.coordinates]

    def members(self, groups: ReplicaGroups) -> Members:
        """Return the groups of the ranks that are kept.

        Raises:
            ApartError: they are not a product of axes in their order.
        """
        if groups not in self._members:
            self._members[groups] = self._groups_of(groups)
        return self._members[groups]

    def _groups_of(self, groups: ReplicaGroups) -> Members:
        size, spanned = groups.axis_size, self.axes.spanned(groups)
        if not self.fewer:
            places = [groups.position[r] for r in range(len(self))]
            every = np.asarray(groups.ranks)
            return Members(every, None, size, self.layout(((None, size),)), places, ())
        if spanned is None:
            raise ApartError(self.fewer, "replica groups are not a product of axes in their order")
        others = [i for i in range(len(self.kept)) if i not in spanned]
        grid = np.arange(len(self)).reshape(self.kept).transpose(*others, *spanned)
        ranks = grid.reshape(-1, math.prod(self.kept[i] for i in spanned))
        position = np.empty(len(self), np.intp)
        position[ranks] = np.arange(ranks.shape[1])
        layout = tuple((i, self.axes.sizes[i]) for i in spanned)
        fewer = not self.fewer.isdisjoint(spanned)
        weights, named = (self._weights(layout), layout) if fewer else (None, ())
        return Members(ranks, weights, size, self.layout(layout), position.tolist(), named)

    # -- blocks --------------------------------------------------------------------------------

    def layout(self, layout: Layout) -> Layout:
        """Return a layout in which axes that are kept whole have no name."""
        return merged((i if i in self.fewer else None, n) for i, n in layout)

    def blocks(self, layout: Layout) -> Layout:
        """Return ``layout``, and note by how many coordinates its blocks on a rank are told."""
        for i in self.fewer:
            self.indices[i] = max(self.indices[i], 1 + [axis for axis, _ in layout].count(i))
        return layout

    def count(self, layout: Layout) -> int:
        """Return the number of blocks that are computed with."""
        return math.prod(n if i is None else self.kept[i] for i, n in layout)

    def weights(self, layout: Layout) -> Field | None:
        """Return how many blocks each of them stands for, shaped like a field; None: one."""
        if self.fewer.isdisjoint(i for i, _ in layout if i is not None):
            return None
        return self._weights(layout)[None, :, None, None]

    def _weights(self, layout: Layout) -> npt.NDArray[np.uint64]:
        """Return the weights of blocks, or ranks, along all axes of ``layout``."""
        weights = np.ones(1, np.uint64)
        for i, n in layout:
            own = np.ones(n if i is None else self.kept[i], np.uint64)
            own[-1] += np.uint64(n - len(own))
            weights = np.multiply.outer(weights, own).ravel()
        return weights

    def rest(self, layout: Layout, shared: Layout) -> Layout:
        """Return the layout of one share of rows, which ranks hold by their place in ``shared``.

        Raises:
            ApartError: blocks are not those that the ranks share.
        """
        rest, left = list(layout), list(shared)
        while rest and left and rest[0] == left[0]:
            del rest[0], left[0]
        if left and rest and left[0][0] is rest[0][0] is None and not rest[0][1] % left[0][1]:
            rest[0] = (None, rest[0][1] // left.pop(0)[1])
        if left:
            axes = {i for i, _ in (*layout, *shared) if i is not None}
            raise ApartError(axes, "rows of one size are shared among different ranks")
        return merged(rest)

    def check_alike(self, values: Sequence[object], why: str) -> None:
        """Raise ApartError if numbers of ranks differ along axes that are not kept whole."""
        if axes := self.fewer & self.axes.varying(values):
            raise ApartError(axes, why)

    # -- sums ----------------------------------------------------------------------------------

    def noted(self, sums: Sums, more: Layout = (), times: int = 1) -> Sums:
        """Return the sums in a value that may be compared: ``sums``, and over ``more``."""
        if more and not self.fewer.isdisjoint(over := [i for i, _ in more]):
            sums = tuple([n + times * over.count(i) for i, n in enumerate(sums)])
        if sums != self.none:
            self.most = tuple(map(max, self.most, sums))
        return sums

    def needed(self) -> Iterator[int]:
        """Yield, per axis, how many coordinates decide what was interpreted on these.

        Of axes that are kept whole nothing is counted: all do.
        """
        for i, (n, sums) in enumerate(zip(self.axes.sizes, self.most, strict=True)):
            few = sums + 2 * self.indices[i] if sums or self.indices[i] > 1 else 1
            yield min(n, few) if i in self.fewer else n

    @property
    def decide(self) -> bool:
        """Whether equal values on these ranks are equal on all."""
        return all(k >= n for k, n in zip(self.kept, self.needed(), strict=True))
