"""A random model of tensor algebra, in which equal functions get equal values.

Every tensor that a rank holds is a vector over a finite field: LANES independent vectors of WIDTH
elements of Z_p, p = 2^31 - 1. Ops act on these vectors as their meanings say:

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
"""Elements of Z_p, shape [ranks, LANES, WIDTH]."""

P = 2**31 - 1
LANES = 4
WIDTH = 4


def element(number: Fraction) -> int:
    """The field element of a rational number.

    Denominators are powers of two (floats) or small: never a multiple of p.
    """
    return number.numerator * pow(number.denominator, -1, P) % P


def constant(number: Fraction, ranks: int) -> Field:
    """The tensor whose elements all are ``number``, on every rank."""
    return np.full((ranks, LANES, WIDTH), element(number), np.uint64)


def scaled(x: Field, number: Fraction) -> Field:
    """``number * x``."""
    return x if number == 1 else cast(Field, x * np.uint64(element(number)) % P)


def added(x: Field, y: Field) -> Field:
    """``x + y``."""
    return cast(Field, (x + y) % P)


def product(x: Field, y: Field) -> Field:
    """Elementwise ``x * y``."""
    return cast(Field, x * y % P)


def summed_over(x: Field, groups: Sequence[Sequence[int]]) -> Field:
    """On every rank, the sum of x over the ranks of its group."""
    members = np.asarray(groups)
    total = np.empty_like(x)
    total[members] = (x[members].sum(axis=1, dtype=np.uint64) % P)[:, None]
    return total


@lru_cache(maxsize=1 << 15)
def _drawn(key: bytes, count: int) -> Field:
    return np.frombuffer(hashlib.shake_128(key).digest(4 * count), np.uint32).astype(np.uint64) % P


def random_vectors(keys: Sequence[bytes]) -> Field:
    """One random vector per rank; the same for the same key."""
    return per_key(keys, lambda key: _drawn(key, LANES * WIDTH).reshape(LANES, WIDTH))


def per_key(keys: Sequence[bytes], draw: Callable[[bytes], Field]) -> Field:
    """``draw`` of every rank's key, stacked, each distinct key drawn once."""
    if len(set(keys)) == 1:
        one = draw(keys[0])
        return np.broadcast_to(one, (len(keys), *one.shape))
    return np.stack([draw(key) for key in keys])


def multilinear(keys: Sequence[bytes], factors: Sequence[Field]) -> Field:
    """A random multilinear map, drawn from every rank's key, of the factors."""
    joint = factors[0]
    for factor in factors[1:]:
        outer = joint[..., :, None] * factor[..., None, :] % P
        joint = cast(Field, outer.reshape(*outer.shape[:2], -1))
    width = joint.shape[-1]
    maps = per_key(
        keys, lambda key: _drawn(key, LANES * WIDTH * width).reshape(LANES, WIDTH, width)
    )
    return cast(Field, (maps * joint[:, :, None, :] % P).sum(axis=-1, dtype=np.uint64) % P)


def stretched(key: bytes, x: Field) -> Field:
    """A random linear map that keeps constants: broadcasting along given dimensions."""
    matrix = _drawn(key, LANES * WIDTH * WIDTH).reshape(LANES, WIDTH, WIDTH).copy()
    excess = (matrix.sum(axis=-1, dtype=np.uint64) + P - 1) % P
    matrix[:, :, 0] = (matrix[:, :, 0] + P - excess) % P
    return cast(Field, (matrix * x[:, :, None, :] % P).sum(axis=-1, dtype=np.uint64) % P)


def rows(x: Field) -> list[bytes]:
    """Every rank's vector as bytes."""
    flat = np.ascontiguousarray(x).reshape(len(x), -1)
    if (flat == flat[0]).all():
        return [flat[0].tobytes()] * len(flat)
    return [row.tobytes() for row in flat]
