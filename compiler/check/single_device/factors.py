"""Which dimensions of a call are one factor, as blocks along every dimension need it.

The labels of the op rules, and what holds of blocks beside them: where a dimension is contracted,
each term is summed over the blocks of its own factors, so that an addend is not added once a block;
a mean is a sum over n; a stretched dimension has blocks of copies; grouped heads are cut at the
same fractions of query and key heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sympy
import torch
from torch import fx

from compiler.ir import access
from compiler.ir.rules import Call, Dims, Meaning, cached_by_call, meaning_of
from compiler.ir.rules.contraction import PRODUCTS
from compiler.ir.rules.meaning import Labels

aten = torch.ops.aten
SLICES = (aten.slice.Tensor, aten.narrow.default)
SPLITS = (
    aten.split.Tensor, aten.split.sizes, aten.split_with_sizes.default, aten.chunk.default,
    aten.unsafe_split.Tensor, aten.unsafe_split_with_sizes.default, aten.tensor_split.sections,
)  # fmt: skip
CATS = (aten.cat.default, aten.concat.default, aten.concatenate.default)
VIEWS = (
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.unsqueeze.default,
    aten.flatten.using_ints, aten.unflatten.int, aten.squeeze.dim, aten.squeeze.dims,
    aten.view_as.default, aten.reshape_as.default,
)  # fmt: skip


@dataclass(frozen=True)
class Factors:
    """The rule of a call, and its factor labels for blocks along every dimension."""

    rule: Meaning
    operands: tuple[Labels, ...]
    results: tuple[Labels, ...]


@cached_by_call
def factors_of(call: Call) -> Factors | None:
    """Return the factors of a call; None if it has no rule, is random, or differs per rank."""
    rule = meaning_of(call)
    if rule is None or rule.random or (rule.rank_dependent and not call.rank_dependent):
        return None
    dims = rule.dims or Dims(
        tuple((None,) * len(shape) for shape in call.shapes),
        tuple((None,) * len(shape) for shape in call.result_shapes),
    )
    operands, results = list(dims.operands), list(dims.results)
    own = _OWN.get(call.target)
    if own is not None:
        own(call, rule, operands, results)
    return Factors(rule, tuple(operands), tuple(results))


def _of_product(call: Call, rule: Meaning, operands: list[Labels], results: list[Labels]) -> None:
    """Label what is contracted: the addend is a term of its own, which has no such factor."""
    product = PRODUCTS[call.target](call).dims if rule.terms and len(rule.terms) > 1 else None
    if product is not None and rule.terms:
        results[:] = product.results
        for i in rule.terms[-1].operands:
            operands[i] = product.operands[i]


def _of_mean(call: Call, rule: Meaning, operands: list[Labels], results: list[Labels]) -> None:
    """Label what a sum is over, where a mean is such a sum divided by a number."""
    if rule.terms is not None and _is_sum(rule.terms[0].map):
        operands[:] = [tuple(range(len(call.shapes[0])))]


def _of_extremum(call: Call, rule: Meaning, operands: list[Labels], results: list[Labels]) -> None:
    """Label what a maximum or minimum is over: it is that of its blocks' own."""
    if rule.selection is not None:
        operands[:] = [tuple(range(len(call.shapes[0])))]


def _of_copies(call: Call, rule: Meaning, operands: list[Labels], results: list[Labels]) -> None:
    """Label a stretched dimension: each of its blocks is a stretched one."""
    results[:] = [tuple(f"copies{d}" if x is None else x for d, x in enumerate(results[0]))]


def _of_heads(call: Call, rule: Meaning, operands: list[Labels], results: list[Labels]) -> None:
    """Label grouped heads: query head h reads key head h // n."""
    if not call.arguments.get("enable_gqa"):
        return
    for i, shape in enumerate(call.shapes):  # a mask may have heads too
        if len(shape) > 2 and (shape[-3] != 1 or i != call.index("attn_mask")):
            operands[i] = (*operands[i][:-3], "heads", *operands[i][-2:])
    results[:] = [(*results[0][:-3], "heads", *results[0][-2:])]


def _of_repeats(call: Call, rule: Meaning, operands: list[Labels], results: list[Labels]) -> None:
    """Label a dimension whose rows are repeated: each row is, by itself."""
    if call.arguments.get("dim") is not None:
        operands[:] = results[:] = [tuple(range(len(call.shapes[0])))]


_OWN: dict[object, Callable[[Call, Meaning, list[Labels], list[Labels]], None]] = {
    **dict.fromkeys(PRODUCTS, _of_product),
    aten.mean.dim: _of_mean,
    aten.mean.default: _of_mean,
    **dict.fromkeys((aten.amax.default, aten.amin.default), _of_extremum),
    **dict.fromkeys((aten.max.default, aten.min.default), _of_extremum),
    aten.expand.default: _of_copies,
    aten.broadcast_to.default: _of_copies,
    aten.scaled_dot_product_attention.default: _of_heads,
    aten.repeat_interleave.self_int: _of_repeats,
}
"""Op -> what its labels are for blocks, where that is more than its rule says."""


def _is_sum(key: object) -> bool:
    return isinstance(key, tuple) and key[0] == "sum"


@dataclass(frozen=True)
class Piece:
    """A range of a dimension that is a tensor of its own.

    Attributes:
        index: of the result, or of the operand of a ``cat``, that is the range.
        starts: where it begins, one number for all ranks or one for each.
        length: its size along the dimension.
    """

    index: int
    starts: tuple[Any, ...]
    length: Any


def pieces(call: Call) -> tuple[int, tuple[Piece, ...]] | None:
    """Return the dimension of a slice, split or cat, and its ranges; None for other calls."""
    if call.target in SLICES:
        return _sliced(call)
    is_cat = call.target in CATS
    if not is_cat and call.target not in SPLITS:
        return None
    shapes = call.shapes if is_cat else call.result_shapes
    if any(len(shape) != len(call.result) for shape in shapes):
        return None
    dim, start, ranges = int(call.arguments.get("dim", 0)) % len(call.result), 0, []
    for i, shape in enumerate(shapes):
        ranges.append(Piece(i, (start,), shape[dim]))
        start += shape[dim]
    return dim, tuple(ranges)


def _sliced(call: Call) -> tuple[int, tuple[Piece, ...]] | None:
    dim, start = call.dim(), call.arguments.get("start")
    start = 0 if start is None else start  # a rank's number may be 0 on this one
    size, length = call.shapes[0][dim], call.result[dim]
    if call.arguments.get("step", 1) != 1 or not isinstance(start, int):
        return None
    starts = start.values if isinstance(start, access.RankInt) else (start,)
    if size != length and not (isinstance(size, int) and isinstance(length, int)):
        return None
    begins = tuple(range(size)[s:].start if isinstance(size, int) else 0 for s in starts)
    return dim, (Piece(0, begins, length),)


@lru_cache(maxsize=1 << 12)
def row_major_groups(
    before: tuple[Any, ...], after: tuple[Any, ...]
) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """Match the dimensions of a row-major view in groups of as many elements, as few as can be."""
    groups: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        left, right = before[i:], after[j:]
        if left and right and (left[0] == 1) != (right[0] == 1):
            one = left[0] == 1
            groups.append(((i,), ()) if one else ((), (j,)))
            i, j = (i + 1, j) if one else (i, j + 1)
            continue
        m, n = min(len(left), 1), min(len(right), 1)
        a, b = left[0] if m else 1, right[0] if n else 1
        while _differ(a, b) and (m < len(left) or n < len(right)):
            if m < len(left) and (n == len(right) or _smaller(a, b)):
                a, m = a * left[m], m + 1
            else:
                b, n = b * right[n], n + 1
        groups.append((tuple(range(i, i + m)), tuple(range(j, j + n))))
        i, j = i + m, j + n
    return tuple(groups)


def _differ(a: Any, b: Any) -> bool:
    plain = isinstance(a, int) and isinstance(b, int)
    return bool(a != b and (plain or sympy.expand(a - b) != 0))


def _smaller(a: Any, b: Any) -> bool:
    if isinstance(a, int) and isinstance(b, int):
        return a < b
    quotient = sympy.cancel(sympy.sympify(b) / a)
    return bool(quotient.is_integer) and quotient != 1


def leading(rows: int, before: tuple[Any, ...], after: tuple[Any, ...]) -> int | None:
    """Return how many leading dimensions of a view number what the first ``rows`` did, at least."""
    count, seen = sympy.Mul(*before[:rows]), sympy.Integer(1)
    for j in range(len(after) + 1):
        if sympy.expand(seen - count) == 0:
            return j
        seen = seen * after[j] if j < len(after) else seen
    return None


def is_view(node: fx.Node) -> bool:
    """Whether a call keeps the elements of its first operand in row-major order."""
    return node.target in VIEWS
