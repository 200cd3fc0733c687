"""Permutations of dimensions as linear maps that compose, whatever is done linearly between them.

A tensor of sizes s becomes one of sizes t by a permutation p. Its map in the random model is

    A(p, s) = B(t) D B(s)^-1        B random for every sequence of sizes, with rows that add up to 1

with D = 1, or the exchange of two pairs of coordinates where p reverses the two dimensions that are
of one size. So A(q, t) A(p, s) = A(q p, s), constants stay, and nothing else is equal: where all
sizes differ, s and t say which p it was; where two are the same, also whether D is there. D is no
multiple of 1, so that a x + b D x = 0 for a = b = 0 alone. Of more equal dimensions than one pair
sums of such maps could vanish that should not: these permutations compose one after the other only,
as ``compiler.check.single_device.grid`` has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from compiler.check import algebra
from compiler.check.algebra import LANES, PRIMES, WIDTH, Field
from compiler.check.single_device.grid import Key, Permutations

EXCHANGE = np.eye(WIDTH, dtype=np.uint64)[[1, 0, 3, 2]]


class LinearPermutations(Permutations):
    """Permutations of blocks."""

    def _cells(self, key: Key, cells: Field, sizes: tuple[Any, ...], order: Sequence[int]) -> Field:
        many = [d for d in range(len(sizes)) if sizes[d] != 1]
        now = [many.index(d) for d in order if d in many]
        before = [sizes[d] for d in many]
        equal = [(i, j) for j in range(len(many)) for i in range(j) if before[i] == before[j]]
        if now == sorted(now) or len(equal) > 1:
            return super()._cells(key, cells, sizes, order)
        after = [before[d] for d in now]
        turned = any(now.index(i) > now.index(j) for i, j in equal)
        name = key("permutation", tuple(before)), key("permutation", tuple(after))
        return algebra.applied(_map(*name, turned=turned), cells)


@lru_cache(maxsize=1 << 12)
def _map(before: bytes, after: bytes, *, turned: bool) -> Field:
    """Return B(after) D B(before)^-1, [LANES, WIDTH, WIDTH]."""
    maps = np.empty((LANES, WIDTH, WIDTH), np.uint64)
    bases = algebra.keeping_constants(before, WIDTH), algebra.keeping_constants(after, WIDTH)
    for lane, p in enumerate(PRIMES):
        first, last = (base[lane].astype(object) for base in bases)
        middle = EXCHANGE.astype(object) if turned else np.eye(WIDTH, dtype=object)
        maps[lane] = (last @ middle @ _inverse(first, p) % p).astype(np.uint64)
    return maps


def _inverse(matrix: Any, p: int) -> Any:
    """Return the inverse of a matrix of integers modulo p, by elimination."""
    n = len(matrix)
    rows = np.concatenate([matrix, np.eye(n, dtype=object)], axis=1)
    for i in range(n):
        pivot = next(r for r in range(i, n) if rows[r, i] % p)
        rows[[i, pivot]] = rows[[pivot, i]]
        rows[i] = rows[i] * pow(int(rows[i, i]), -1, p) % p
        for r in range(n):
            if r != i:
                rows[r] = (rows[r] - rows[r, i] * rows[i]) % p
    return rows[:, n:]
