"""Values by cases of an index: which block of a table do the rows look up?

A table that is cut, an embedding by its vocabulary or weights by their experts, is read by an index
that may name any of its rows. In the case that all entries of the index lie in one block, a lookup
reads that block alone, comparisons with the block's ends have one answer, and what is masked out is
zero. A value that is a function of one index entry at a time is therefore kept as what it is in
each case:

    x = sum over blocks I of  [index in I] * x_I

for any x_I that is x wherever the index lies in I. Ops that treat the index's entries one by one
act on each case; others are given the sum. ``[index in I]`` is a random vector for every index and
block.

An integer is read off the model: in the case of I = [a, b), a vector that differs from that of the
index by a constant c lies in [a - c, b - c), and a constant vector is that constant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from compiler.check import algebra
from compiler.check.algebra import Field
from compiler.ir import access
from compiler.ir.rules import Call

aten = torch.ops.aten

LOOKUPS: dict[object, tuple[str, str]] = {
    aten.embedding.default: ("weight", "indices"),
    aten.index.Tensor: ("self", "indices"),
    aten.index_select.default: ("self", "index"),
}
"""Ops that read rows of a table -> their arguments for table and index."""

Span = tuple[int, int] | None
"""Least value and one more than the greatest; None: unknown."""

Interval = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Index:
    """An integer tensor by which a table that is cut is read.

    Attributes:
        number: how many were met before.
        data: its vector, [LANES, WIDTH].
        intervals: blocks of the table, which hold all that it may be.
    """

    number: int
    data: Field
    intervals: tuple[Interval, ...]

    @property
    def key(self) -> bytes:
        """Return the bytes that name it."""
        return self.data.tobytes()


@dataclass(frozen=True, eq=False)
class Cases:
    """A value by cases of an index.

    Attributes:
        index: the index.
        rows: leading dimensions whose positions number the index's entries, as few as do so.
        data: per interval, the value in that case.
        masked: it is summed up as soon as a mask has been applied, as embeddings are.
        settled: it is to be summed up now.
    """

    index: Index
    rows: int
    data: tuple[Field, ...]
    masked: bool = False
    settled: bool = False


class Indices:
    """The indices met so far, the same for graphs to compare."""

    def __init__(self) -> None:
        self._indices: dict[bytes, Index] = {}

    def add(self, data: Field, intervals: tuple[Interval, ...]) -> Index:
        """Return the index of a vector, new if none differs from it by a constant alone."""
        index = Index(len(self._indices), data, intervals)
        return self._indices.setdefault(_up_to_constants(data), index)

    @property
    def first(self) -> Index | None:
        """Return the index met first, None if there is none."""
        return next(iter(self._indices.values()), None)

    def of(self, x: Field) -> Index | None:
        """Return the index that ``x``, [ranks, 1, LANES, WIDTH], differs from by constants."""
        by_rank = [self._indices.get(_up_to_constants(row[0])) for row in x]
        return by_rank[0] if all(index is by_rank[0] for index in by_rank) else None


def _up_to_constants(data: Field) -> bytes:
    return ((data + algebra.P - data[:, :1]) % algebra.P).tobytes()


def constant(x: Field) -> int | None:
    """Return the integer that a vector [LANES, WIDTH] is everywhere; None for others."""
    if not (x == x[:, :1]).all():
        return None
    prime = algebra.PRIMES[0]
    first = int(x[0, 0])
    number = first if first <= prime // 2 else first - prime
    return number if (algebra.element(Fraction(number)) == x[:, :1]).all() else None


def span(x: Field, index: Index, interval: Interval) -> Span:
    """Return what the entries of an integer vector can be where the index lies in an interval."""
    if (number := constant(x)) is not None:
        return number, number + 1
    apart = constant((index.data + algebra.P - x) % algebra.P)
    return None if apart is None else (interval[0] - apart, interval[1] - apart)


Decision = tuple[str, int] | None
"""("constant", n), ("operand", i) or ("shifted", n): operand 0 less n; None: undecided."""


def decision(call: Call, spans: Sequence[Span], rank: int) -> Decision:
    """Return what a call gives on a rank for operands in ``spans``, if that is simple."""
    decide = DECISIONS.get(call.target)
    return None if decide is None else decide(call, spans, rank)


def _number(call: Call, name: str, rank: int) -> int | None:
    number = access.on_rank(call.arguments.get(name), rank)
    return int(number) if isinstance(number, int) else None


def _other(call: Call, spans: Sequence[Span], rank: int) -> Span:
    if (i := call.index("other")) is not None:
        return spans[i]
    number = _number(call, "other", rank)
    return None if number is None else (number, number + 1)


def _less(a: Span, b: Span) -> bool | None:
    if a is None or b is None:
        return None
    if a[1] - 1 < b[0]:
        return True
    return False if a[0] >= b[1] - 1 else None


def _equal(a: Span, b: Span) -> bool | None:
    if a is None or b is None:
        return None
    if a[1] <= b[0] or b[1] <= a[0]:
        return False
    return True if a == b and a[1] - a[0] == 1 else None


def _comparing(compare: Callable[[Span, Span], bool | None]) -> Any:
    def decide(call: Call, spans: Sequence[Span], rank: int) -> Decision:
        answer = compare(spans[0], _other(call, spans, rank))
        return None if answer is None else ("constant", int(answer))

    return decide


def _negated(answer: bool | None) -> bool | None:
    return None if answer is None else not answer


def _logical(combine: Callable[[int, int], int], absorbing: int) -> Any:
    def decide(call: Call, spans: Sequence[Span], rank: int) -> Decision:
        read = [x for x in spans if x in ((0, 1), (1, 2))]
        if call.dtypes[0] is not torch.bool or len(spans) != 2:
            return None
        if (absorbing, absorbing + 1) in read:
            return "constant", absorbing
        if len(read) != 2:
            return None
        return "constant", combine(*(x[0] for x in read if x is not None))

    return decide


def _not(call: Call, spans: Sequence[Span], rank: int) -> Decision:
    decides = call.dtypes[0] is torch.bool and spans[0] in ((0, 1), (1, 2))
    return ("constant", int(spans[0] == (0, 1))) if decides else None


def _converted(call: Call, spans: Sequence[Span], rank: int) -> Decision:
    """Zero and one are so in any type, other whole numbers in types that hold them."""
    x = spans[0]
    if x in ((0, 1), (1, 2)):
        return "constant", x[0]
    whole = {torch.int32, torch.int64}
    if x is None or not {call.dtypes[0], call.result_dtypes[0]} <= whole:
        return None
    least = torch.iinfo(torch.int32)
    return ("operand", 0) if least.min <= x[0] and x[1] - 1 <= least.max else None


def _where(call: Call, spans: Sequence[Span], rank: int) -> Decision:
    condition = spans[call.operand("condition")]
    if condition not in ((0, 1), (1, 2)):
        return None
    return _chosen(call, "self" if condition == (1, 2) else "other", spans, rank)


def _filled(call: Call, spans: Sequence[Span], rank: int) -> Decision:
    mask = spans[call.operand("mask")]
    if mask not in ((0, 1), (1, 2)):
        return None
    return _chosen(call, "value" if mask == (1, 2) else "self", spans, rank)


def _chosen(call: Call, name: str, spans: Sequence[Span], rank: int) -> Decision:
    if (i := call.index(name)) is not None:
        own = spans[i]
        if own is not None and own[1] - own[0] == 1:
            return "constant", own[0]
        return ("operand", i) if call.shapes[i] == call.result else None
    number = access.on_rank(call.arguments.get(name), rank)
    whole = isinstance(number, int) or (isinstance(number, float) and number.is_integer())
    return ("constant", int(number)) if whole else None


def _clamped(call: Call, spans: Sequence[Span], rank: int) -> Decision:
    low, high = _number(call, "min", rank), _number(call, "max", rank)
    limits = [call.arguments.get(name) for name in ("min", "max")]
    are_numbers = [limit is None or isinstance(limit, int) for limit in limits]
    x = spans[0]
    if x is None or len(spans) != 1 or not all(are_numbers):
        return None
    if (low is None or low <= x[0]) and (high is None or x[1] - 1 <= high):
        return "operand", 0
    if high is not None and x[0] >= high and (low is None or low <= high):
        return "constant", high
    if low is not None and x[1] - 1 <= low and (high is None or low <= high):
        return "constant", low
    return None


def _quotient(x: Span, divisor: Span) -> int | None:
    if x is None or divisor is None or divisor[1] - divisor[0] != 1 or divisor[0] <= 0:
        return None
    first, last = x[0] // divisor[0], (x[1] - 1) // divisor[0]
    return first if first == last else None


def _divided(call: Call, spans: Sequence[Span], rank: int) -> Decision:
    if call.target is aten.div.Tensor_mode and call.arguments.get("rounding_mode") != "floor":
        return None
    quotient = _quotient(spans[0], _other(call, spans, rank))
    return None if quotient is None else ("constant", quotient)


def _remaining(call: Call, spans: Sequence[Span], rank: int) -> Decision:
    divisor = _other(call, spans, rank)
    quotient = _quotient(spans[0], divisor)
    if quotient is None or divisor is None or call.shapes[0] != call.result:
        return None
    return "shifted", quotient * divisor[0]


def _comparisons() -> dict[object, Any]:
    tests = {
        "lt": _less,
        "gt": lambda a, b: _less(b, a),
        "ge": lambda a, b: _negated(_less(a, b)),
        "le": lambda a, b: _negated(_less(b, a)),
        "eq": _equal,
        "ne": lambda a, b: _negated(_equal(a, b)),
    }
    return {
        getattr(getattr(aten, name), kind): _comparing(test)
        for name, test in tests.items()
        for kind in ("Scalar", "Tensor")
    }


_AND, _OR = _logical(min, 0), _logical(max, 1)
DECISIONS: dict[object, Any] = {
    **_comparisons(),
    **dict.fromkeys((aten.logical_and.default, aten.bitwise_and.Tensor, aten.__and__.Tensor), _AND),
    **dict.fromkeys((aten.logical_or.default, aten.bitwise_or.Tensor, aten.__or__.Tensor), _OR),
    aten.logical_not.default: _not,
    aten.bitwise_not.default: _not,
    aten._to_copy.default: _converted,
    aten.where.self: _where,
    aten.where.ScalarOther: _where,
    aten.where.ScalarSelf: _where,
    aten.masked_fill.Scalar: _filled,
    aten.masked_fill.Tensor: _filled,
    aten.clamp.default: _clamped,
    aten.clamp_max.default: _clamped,
    aten.clamp_min.default: _clamped,
    aten.floor_divide.default: _divided,
    aten.div.Tensor_mode: _divided,
    aten.remainder.Scalar: _remaining,
    aten.remainder.Tensor: _remaining,
}
"""Op -> what it gives where spans decide it."""

MASKS = (
    aten.where.self,
    aten.where.ScalarOther,
    aten.masked_fill.Scalar,
    aten.masked_fill.Tensor,
    aten.mul.Tensor,
)


def decided(
    decisions: Sequence[Decision],
    read: Sequence[Field],
    sizes: tuple[int, ...],
    otherwise: Callable[[], Field],
) -> Field:
    """Return what every rank gets: by its decision, or the call's value on that rank.

    Args:
        decisions: per rank.
        read: operands, which have the blocks of the result where a decision names them.
        sizes: numbers of blocks of the result.
        otherwise: the call's value, however it is computed.
    """
    by_decision = {d: _decided(d, read, sizes, otherwise) for d in dict.fromkeys(decisions)}
    ranks = len(decisions)
    if len(by_decision) == 1:
        return by_decision[decisions[0]]
    rows = [algebra.of_ranks(by_decision[d], ranks)[rank] for rank, d in enumerate(decisions)]
    return algebra.alike(np.stack(rows))


def _decided(
    own: Decision, read: Sequence[Field], sizes: tuple[int, ...], otherwise: Callable[[], Field]
) -> Field:
    if own is None:
        return otherwise()
    kind, number = own
    if kind == "operand":
        return read[number]
    if kind == "shifted":
        return algebra.added(read[0], algebra.element(Fraction(-number)))
    shape = (1, *sizes, algebra.LANES, algebra.WIDTH)
    return np.broadcast_to(algebra.element(Fraction(number)), shape)
