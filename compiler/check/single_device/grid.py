"""Tensors as grids of blocks in the random model: what moves blocks, joins them, spreads them.

A value is an array [ranks, *blocks along each dimension, LANES, WIDTH]; one rank stands for all
alike. Blocks of the same elements in the same row-major order are the same vectors, so that views,
splits and gathers at block boundaries move blocks and compute nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np

from compiler.check import algebra
from compiler.check.algebra import Field

Blocks = Sequence[tuple[Any, ...]]
"""Sizes of the blocks along every dimension."""

Key = Callable[..., bytes]
"""Turns static data into the key of a random map."""

CELL = (algebra.LANES, algebra.WIDTH)


def counts(x: Field) -> tuple[int, ...]:
    """Return the numbers of blocks along every dimension."""
    return tuple(x.shape[1:-2])


def fits(x: Field, blocks: Blocks) -> bool:
    """Whether ``x`` has as many blocks along every dimension as ``blocks`` says."""
    return counts(x) == tuple(map(len, blocks))


def flat(x: Field) -> Field:
    """Return all blocks in row-major order, [ranks, blocks, LANES, WIDTH]."""
    return x.reshape(len(x), -1, *CELL)


def shaped(x: Field, sizes: Sequence[int]) -> Field:
    """Return the inverse of ``flat`` for so many blocks along each dimension."""
    return x.reshape(len(x), *sizes, *CELL)


def by_size(blocks: Blocks) -> dict[tuple[Any, ...], list[int]]:
    """Group the numbers of blocks, in row-major order, by their sizes."""
    if all(len(set(sizes)) == 1 for sizes in blocks):
        every = range(prod(map(len, blocks)))
        return {tuple(sizes[0] for sizes in blocks): list(every)}
    numbers: dict[tuple[Any, ...], list[int]] = {}
    for i, sizes in enumerate(product(*blocks)):
        numbers.setdefault(sizes, []).append(i)
    return numbers


def mapped(x: Field, blocks: Blocks, convert: Callable[[tuple[Any, ...], Field], Field]) -> Field:
    """Return ``convert`` of the blocks of each size, [ranks, blocks, …], in their places."""
    groups, source = by_size(blocks), flat(x)
    if len(groups) == 1:
        return shaped(convert(next(iter(groups)), source), counts(x))
    target = np.empty_like(source)
    for sizes, numbers in groups.items():
        target[:, numbers] = convert(sizes, source[:, numbers])
    return shaped(target, counts(x))


def joined(key: Key, x: Field, blocks: Blocks, dims: Sequence[int]) -> Field:
    """Join the blocks along some dimensions: linear, keeps constants, the same for same sizes."""
    many = [d for d in dims if x.shape[1 + d] > 1]
    if not many:
        return x
    rest = [d for d in range(len(blocks)) if d not in many]
    order = [0, *(1 + d for d in rest), *(1 + d for d in many), x.ndim - 2, x.ndim - 1]
    moved = np.transpose(x, order)
    n = prod(x.shape[1 + d] for d in many)
    others = moved.reshape(len(x), -1, n, *CELL)
    whole = np.empty((*others.shape[:2], *CELL), np.uint64)
    for sizes, numbers in by_size([blocks[d] for d in rest]).items():
        layout: list[Any] = list(blocks)
        for d, size in zip(rest, sizes, strict=True):
            layout[d] = size
        name = key("join", tuple(map(tuple_or_size, layout)))
        cells = others[:, numbers].reshape(-1, n, *CELL)
        whole[:, numbers] = algebra.joined(name, cells).reshape(len(x), len(numbers), *CELL)
    left = [1 if d in many else x.shape[1 + d] for d in range(len(blocks))]
    return shaped(whole, left)


def tuple_or_size(blocks: Any) -> Any:
    """Return the size of a dimension in one block, the sizes of its blocks otherwise."""
    return blocks[0] if isinstance(blocks, tuple) and len(blocks) == 1 else blocks


def spread(key: Key, x: Field, blocks: Blocks) -> Field:
    """Take blocks apart along the dimensions in which ``x`` has one and should have several."""
    for d, sizes in enumerate(blocks):
        if len(sizes) == 1 or x.shape[1 + d] > 1:
            continue
        now: list[tuple[Any, ...]] = [
            own if x.shape[1 + i] == len(own) else (own,) for i, own in enumerate(blocks)
        ]
        source = flat(x)
        target = np.empty((len(x), source.shape[1], len(sizes), *CELL), np.uint64)
        for cell, numbers in by_size(now).items():
            keys = [key("spread", d, sizes, i, cell) for i in range(len(sizes))]
            cells = source[:, numbers].reshape(-1, 1, *CELL)
            parts = algebra.spread(keys, cells)
            target[:, numbers] = parts.reshape(len(x), len(numbers), len(sizes), *CELL)
        x = np.moveaxis(shaped(target, (*counts(x), len(sizes))), -3, 1 + d)
        x = x.reshape(len(x), *(n for i, n in enumerate(x.shape[1:-2]) if i != d + 1), *CELL)
    return x


class Permutations:
    """Blocks whose dimensions are in another order: a random map, unless the elements are not.

    Permutations compose: a block that is permuted already is permuted once more from its origin.
    """

    def __init__(self) -> None:
        self._origins: dict[tuple[bytes, tuple[Any, ...]], tuple[Field, tuple[int, ...]]] = {}

    def permuted(self, key: Key, x: Field, blocks: Blocks, order: Sequence[int]) -> Field:
        """Return ``x`` with result dimension d its dimension ``order[d]``."""
        inside = mapped(x, blocks, lambda sizes, cells: self._cells(key, cells, sizes, order))
        return np.transpose(inside, [0, *(1 + d for d in order), x.ndim - 2, x.ndim - 1])

    def _cells(self, key: Key, cells: Field, sizes: tuple[Any, ...], order: Sequence[int]) -> Field:
        many = [d for d in range(len(sizes)) if sizes[d] != 1]
        now = tuple(many.index(d) for d in order if d in many)
        shape = tuple(sizes[d] for d in many)
        if now == tuple(sorted(now)):
            return cells
        target = np.empty_like(cells)
        for at in np.ndindex(*cells.shape[:2]):
            cell = cells[at]
            origin, before = self._origins.get(
                (cell.tobytes(), shape), (cell, tuple(range(len(shape))))
            )
            both = tuple(before[d] for d in now)
            first = tuple(shape[before.index(d)] for d in range(len(shape)))
            target[at] = origin
            if both != tuple(sorted(both)):
                name = key("permute", both, first)
                target[at] = algebra.multilinear([[name]], [origin[None, None]])[0, 0]
            after = tuple(shape[d] for d in now)
            self._origins.setdefault((target[at].tobytes(), after), (origin, both))
        return target
