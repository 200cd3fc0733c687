"""Permutations of dimensions in the random model: they compose, and no two are taken for one."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from compiler.check import algebra
from compiler.check.permutations import LinearPermutations

VECTORS = algebra.random_vectors([[b"x"], [b"y"]])[:, :, None, None]
"""One block of a tensor of three dimensions, on two ranks."""


def key(*parts: object) -> bytes:
    return repr(parts).encode()


def permuted(x: np.ndarray, sizes: tuple[int, ...], order: tuple[int, ...]) -> np.ndarray:
    blocks = [(size,) for size in sizes]
    return LinearPermutations().permuted(key, x, blocks, order)


@pytest.mark.parametrize("sizes", [(2, 3, 5), (3, 2, 3), (1, 4, 6)])
def test_permutations_compose_linearly(sizes: tuple[int, ...]) -> None:
    for first in permutations(range(3)):
        after = tuple(sizes[d] for d in first)
        for second in permutations(range(3)):
            both = tuple(first[d] for d in second)
            steps = permuted(permuted(VECTORS, sizes, first), after, second)
            assert (steps == permuted(VECTORS, sizes, both)).all()
            total = permuted(permuted(VECTORS, sizes, first).sum(0, keepdims=True) % algebra.P,
                             after, second)  # fmt: skip
            assert (total == permuted(VECTORS, sizes, both).sum(0, keepdims=True) % algebra.P).all()


def test_different_permutations_differ_and_keep_constants() -> None:
    for sizes in ((2, 3, 5), (3, 2, 3)):
        results = {permuted(VECTORS, sizes, p).tobytes() for p in permutations(range(3))}
        assert len(results) == 6
    ones = np.ones_like(VECTORS)
    assert all((permuted(ones, (3, 2, 3), p) == 1).all() for p in permutations(range(3)))


def test_a_square_is_not_its_transpose_nor_minus_it() -> None:
    x = VECTORS[:, :, :, 0]
    turned = LinearPermutations().permuted(key, x, [(4,), (4,)], (1, 0))
    assert not (turned == x).all()
    assert not ((turned + x) % algebra.P == 0).all()


def test_a_cube_is_permuted_by_composition_alone() -> None:
    """The signed sum of all six permutations is not zero."""
    total = np.zeros_like(VECTORS)
    for p in permutations(range(3)):
        sign = (-1) ** sum(p[i] > p[j] for j in range(3) for i in range(j))
        one = permuted(VECTORS, (2, 2, 2), p)
        total = (total + (one if sign > 0 else algebra.P - one)) % algebra.P
    assert total.any()
