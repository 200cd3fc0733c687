"""Greatest and least of tensors, element by element, in the random model.

    max(max(a, b), max(b, c)) = max of the set {a, b, c}

A maximum is a random function of the set that it is of, whose members are no maxima themselves; one
member is its own maximum. Nothing else is used of the order of numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compiler.check import algebra
from compiler.check.algebra import Field

KINDS = ("max", "min")


class Extrema:
    """Maxima and minima met so far, the same for graphs to compare."""

    def __init__(self) -> None:
        self._members: dict[tuple[str, bytes], frozenset[bytes]] = {}

    def of(self, kind: str, x: Field) -> Field:
        """Return what ``kind`` gives of the first dimension of ``x``, [n, …, LANES, WIDTH]."""
        target: Field = np.empty_like(x[0])
        for at in np.ndindex(*target.shape[:-2]):
            target[at] = self._one(kind, x[(slice(None), *at)])
        return target

    def over(self, kind: str, x: Field, groups: Sequence[Sequence[int]]) -> Field:
        """Return, on every rank, what ``kind`` gives over the ranks of its group."""
        if len(x) == 1:
            return x
        target = np.empty_like(x)
        for group in groups:
            target[list(group)] = self.of(kind, x[list(group)])
        return algebra.alike(target)

    def _one(self, kind: str, cells: Field) -> Field:
        """Return the vector of a maximum of vectors, [n, LANES, WIDTH]."""
        first: Field = cells[0]
        names = [np.ascontiguousarray(cell).tobytes() for cell in cells]
        members = frozenset[bytes]().union(
            *(self._members.get((kind, name), {name}) for name in names)
        )
        if len(members) == 1:
            return first
        key = b"|".join((kind.encode(), *sorted(members)))
        vector: Field = algebra.random_vectors([[key]])[0, 0]
        self._members[kind, vector.tobytes()] = members
        return vector
