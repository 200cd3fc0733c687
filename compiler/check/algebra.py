"""A random model of tensor algebra, in which equal functions get equal values.

Every tensor that a rank holds is one or more *blocks*, each a vector over finite fields: LANES
independent vectors of WIDTH elements of Z_p, with a prime p just below 2^31 for each lane. Ops act
on these vectors as their meanings say:

    x + y, c x          addition and scaling, in the field
    x * y, elementwise  product, element by element (commutative, associative, distributive)
    a linear map        multiplication by a random matrix, drawn from a hash of the map
    a bilinear map      contraction with a random tensor, drawn likewise
    anything else       a random function: a hash of its operands
    sum over ranks      the sum over ranks

So linearity, distribution of reductions over sums, replication and double counting need no rewrite
rules: they hold in the model because it is a model of those laws. Two values that are equal in
every algebra with these laws are equal here. Two that are not are polynomials that differ, and
agree at a random point of one lane with probability at most degree / p (Schwartz, JACM 27(4),
1980; Zippel, EUROSAM 1979); for degree 1,000 in all lanes, 5e-26. Cost is linear in the number of
values, whatever the sums.

Rows that ranks share are blocks of one tensor: an op that treats rows alike acts on every block by
the same map. An op that mixes rows acts on the blocks ``joined`` to one vector.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import cast

import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.uint64]
"""Elements of Z_p, shape [ranks, blocks, LANES, WIDTH]; one rank stands for all alike."""

Keys = Sequence[Sequence[bytes]]
"""A key per rank and block; one stands for all alike."""

PRIMES = (2_147_483_579, 2_147_483_123, 2_147_482_763, 2_147_481_563)
"""One per lane: the largest p below 2^31 for which (p - 1) / 2 is prime too.

Constants are not drawn at random, so one prime would take two numbers for one with certainty: with
p = 2^31 - 1, 2^31 is 1 and the largest int32 is 0. Numbers that agree here differ by a multiple of
all four.
"""

LANES = len(PRIMES)
WIDTH = 4

P: Field = np.array(PRIMES, np.uint64)[:, None]
"""The modulus of every lane, shape [LANES, 1]."""


def element(number: Fraction) -> Field:
    """Return the field elements of a rational number, shape [LANES, 1].

    Denominators are powers of two (floats), sizes or small: never a multiple of a prime.
    """
    residues = [number.numerator * pow(number.denominator, -1, p) % p for p in PRIMES]
    return np.array(residues, np.uint64)[:, None]


def constant(number: Fraction) -> Field:
    """Return the tensor whose elements all are ``number``."""
    return np.broadcast_to(element(number), (1, 1, LANES, WIDTH))


def scaled(x: Field, number: Fraction) -> Field:
    """Return ``number * x``."""
    return x if number == 1 else cast(Field, x * element(number) % P)


def added(x: Field, y: Field) -> Field:
    """Return ``x + y``."""
    return cast(Field, (x + y) % P)


def product(x: Field, y: Field) -> Field:
    """Return ``x * y``, element by element."""
    return cast(Field, x * y % P)


def of_ranks(x: Field, ranks: int) -> Field:
    """Return ``x`` with every rank written out."""
    return np.broadcast_to(x, (ranks, *x.shape[1:]))


def summed_over(
    x: Field, groups: Sequence[Sequence[int]] | npt.NDArray[np.intp], weights: Field | None = None
) -> Field:
    """Return, on every rank, the sum of x over the ranks of its group.

    Args:
        x: what each rank adds.
        groups: the ranks of every group.
        weights: how often each place of a group is added; None: once.
    """
    members = np.asarray(groups)
    if len(x) == 1:
        return scaled(x, Fraction(members.shape[1] if weights is None else int(weights.sum())))
    addends = x[members] if weights is None else x[members] * weights[:, None, None, None]
    sums = addends.sum(axis=1, dtype=np.uint64) % P
    if len(members) == 1:
        return cast(Field, sums)
    total = np.empty_like(x)
    total[members] = sums[:, None]
    return total


@lru_cache(maxsize=1 << 15)
def _drawn(key: bytes, *shape: int) -> Field:
    count = int(np.prod(shape))
    words = np.frombuffer(hashlib.shake_128(key).digest(4 * count), np.uint32)
    return cast(Field, (words.astype(np.uint64).reshape(LANES, -1) % P).reshape(shape))


def random_vectors(keys: Keys) -> Field:
    """Draw one random vector per rank and block; the same for the same key."""
    return per_key(keys, lambda key: _drawn(key, LANES, WIDTH))


def per_key(keys: Keys, draw: Callable[[bytes], Field]) -> Field:
    """Stack ``draw`` of the key of every rank and block."""
    return np.stack([np.stack([draw(key) for key in row]) for row in keys])


def multilinear(keys: Keys, factors: Sequence[Field]) -> Field:
    """Apply a random multilinear map, drawn from the key of every rank and block."""
    joint = factors[0]
    for factor in factors[1:]:
        outer = joint[..., :, None] * factor[..., None, :] % P[..., None]
        joint = cast(Field, outer.reshape(*outer.shape[:-2], -1))
    maps = per_key(keys, lambda key: _drawn(key, LANES, WIDTH, joint.shape[-1]))
    return applied(maps, joint)


def applied(maps: Field, x: Field) -> Field:
    """Apply matrices to vectors, rank by rank and block by block."""
    return cast(Field, (maps * x[..., None, :] % P[..., None]).sum(axis=-1, dtype=np.uint64) % P)


@lru_cache(maxsize=1 << 12)
def keeping_constants(key: bytes, width: int, weights: tuple[int, ...] = ()) -> Field:
    """Draw a random matrix [LANES, WIDTH, width] whose rows add up to one.

    Args:
        key: of the draw.
        width: number of columns.
        weights: how often each counts, the first once; (): all once.
    """
    assert weights[:1] in ((), (1,)), "the first column makes up for all others"
    matrix = _drawn(key, LANES, WIDTH, width).copy()
    counted = matrix * np.array(weights, np.uint64) if weights else matrix
    excess = (counted.sum(axis=-1, dtype=np.uint64) + P - 1) % P
    matrix[..., 0] = (matrix[..., 0] + P - excess) % P
    return matrix


def stretched(key: bytes, x: Field) -> Field:
    """Broadcast along given dimensions: by a random linear map that keeps constants."""
    return applied(keeping_constants(key, WIDTH), x)


def joined(key: bytes, x: Field, weights: Field | None = None) -> Field:
    """Return all blocks as one vector, by a random linear map that keeps constants.

    Args:
        key: of the map.
        x: the blocks.
        weights: how often each counts, [1, blocks, 1, 1]; the first, and by default all, once.
    """
    ranks, blocks = x.shape[:2]
    times: tuple[int, ...] = ()
    if weights is not None:
        x, times = x * weights % P, tuple(np.repeat(weights.ravel(), WIDTH).tolist())
    together = np.moveaxis(x, 1, 2).reshape(ranks, 1, LANES, blocks * WIDTH)
    return applied(keeping_constants(key, blocks * WIDTH, times), together)


def spread(keys: Sequence[bytes], x: Field) -> Field:
    """Return one vector as blocks, by random linear maps that keep constants, one per key."""
    return applied(np.stack([keeping_constants(key, WIDTH) for key in keys]), x)


def summed_blocks(x: Field, weights: Field | None = None) -> Field:
    """Return the sum of all blocks, each as often as ``weights``, [1, blocks, 1, 1], say."""
    addends = x if weights is None else x * weights
    return cast(Field, addends.sum(axis=1, keepdims=True, dtype=np.uint64) % P)


def alike(x: Field) -> Field:
    """Return ``x`` with one rank where all hold the same."""
    return x[:1] if (x == x[:1]).all() else x


def vector(row: bytes) -> Field:
    """Return the vector whose bytes ``vectors`` gives."""
    return cast(Field, np.frombuffer(row, np.uint64).reshape(LANES, WIDTH))


def vectors(x: Field) -> list[list[bytes]]:
    """Return the vectors of every rank and block as bytes."""
    x = np.ascontiguousarray(alike(x))
    return [[block.tobytes() for block in rank] for rank in x]
