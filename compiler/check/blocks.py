"""Values of the random model whose rows are cut into blocks, and which op acts block by block.

Where a graph shares rows between ranks, every tensor of that many rows is modelled as blocks of
rows, of which each rank may hold some or all. R rows in n blocks are cut at multiples of
ceil(R / n), as ``compiler.ir.row_ops`` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import Any

import sympy

from compiler.check.algebra import Field
from compiler.check.rank_axes import Layout
from compiler.check.representatives import Sums
from compiler.check.sizes import divisible
from compiler.ir.rules import Call, Dims, Meaning, meaning_of

ROWS = sympy.Symbol("rows", integer=True, positive=True)
"""The size of one block in the keys of maps, so that blocks of any size share their map."""


@dataclass(frozen=True, eq=False)
class Value:
    """What every rank holds of a node's value.

    Attributes:
        data: [ranks, blocks, LANES, WIDTH]; one block where no dimension is cut.
        cut: per result, the dimension cut into blocks, or None.
        layout: these blocks, of which ``data`` may have fewer.
        sums: see ``compiler.check.representatives``.
        unit: rows of one block are ``unit`` times those of a block of the original rows: 8 after
            [tokens, 8] became [8 * tokens].
        padded: the last rows may be anything (``pad_rows``), and only ops that act on rows one by
            one may read the tensor until they are cut off.
        parts: of several results that are parts of one tensor, which ``data`` is: the map to each.
    """

    data: Field
    cut: tuple[int | None, ...] = (None,)
    layout: Layout = ()
    sums: Sums = ()
    unit: Any = 1
    padded: bool = False
    parts: tuple[object, ...] = ()

    @property
    def count(self) -> int:
        """Number of blocks."""
        return prod(n for _, n in self.layout)


def aligned(value: Value, size: Any) -> bool:
    """Return whether every block of ``value`` holds as many rows, ``size`` rows in all."""
    return value.padded or divisible(sympy.cancel(sympy.sympify(size) / value.unit), value.count)


@dataclass(frozen=True)
class Blockwise:
    """A call that acts on every block alike.

    Attributes:
        call: the call on one block.
        rule: its meaning.
        cut: per result, the dimension cut into blocks; None where blocks are summed.
        like: an operand with the blocks that the result has.
        operands: whether each operand comes in blocks; otherwise it is needed whole.
    """

    call: Call
    rule: Meaning
    cut: tuple[int | None, ...]
    like: Value
    operands: tuple[bool, ...]


def blockwise(call: Call, rule: Meaning | None, read: Sequence[Value]) -> Blockwise | None:
    """Return how ``call`` acts on blocks, or None if it needs its operands whole.

    There must be a factor that every operand which carries it is cut along, and that all results
    carry; or none do, and results are sums over blocks.
    """
    if rule is None or rule.dims is None or rule.random:
        return None
    labels = rule.dims.operands
    best: Blockwise | None = None
    summed: Blockwise | None = None
    for value, own in zip(read, labels, strict=True):
        factor = None if value.cut[0] is None else own[value.cut[0]]
        if factor is None:
            continue
        carrying = [factor in x for x in labels]
        fits = all(
            (v.cut[0], v.layout, v.unit, v.padded)
            == (x.index(factor), value.layout, value.unit, value.padded)
            for v, x, carries in zip(read, labels, carrying, strict=True)
            if carries
        )
        within = [factor in x for x in rule.dims.results]
        others_padded = any(v.padded for v, c in zip(read, carrying, strict=True) if not c)
        if not fits or others_padded or (any(within) and not all(within)):
            continue
        if not any(within) and (rule.terms is None or value.padded):
            continue
        on_block, unit = _on_block(call, rule.dims, factor, value.unit)
        meaning = meaning_of(on_block)
        if meaning is None or meaning.dims != rule.dims or not sympy.sympify(unit).is_Integer:
            continue  # a fraction: blocks of [8 * tokens] need not hold whole tokens
        cut = tuple(x.index(factor) if factor in x else None for x in rule.dims.results)
        like = replace(value, unit=unit)
        act = Blockwise(on_block, meaning, cut, like, tuple(carrying))
        if not all(within):
            summed = summed or act
        elif best is None or _first_cut(act) < _first_cut(best):
            best = act
    return best or summed


def _first_cut(act: Blockwise) -> int:
    """Return the outermost dimension that is cut: source and target agree on it."""
    return min(dim for dim in act.cut if dim is not None)


@lru_cache(maxsize=1 << 12)
def _on_block(call: Call, dims: Dims, factor: Any, unit: Any) -> tuple[Call, Any]:
    """Return the call on one block, and the unit of its results."""

    def sizes(shapes: Sequence[Any], labels: Sequence[Any]) -> list[Any]:
        both = zip(shapes, labels, strict=True)
        return [shape[own.index(factor)] for shape, own in both if factor in own]

    def resized(shapes: Sequence[Any], labels: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(
            tuple(
                ROWS * unit * _ratio(size, before) if label == factor else size
                for size, label in zip(shape, own, strict=True)
            )
            for shape, own in zip(shapes, labels, strict=True)
        )

    before = sizes(call.shapes, dims.operands)[0]
    after = sizes(call.result_shapes, dims.results)
    on_block = replace(
        call,
        shapes=resized(call.shapes, dims.operands),
        result_shapes=resized(call.result_shapes, dims.results),
    )
    return on_block, unit * _ratio(after[0], before) if after else unit


@lru_cache(maxsize=1 << 10)
def _ratio(size: Any, other: Any) -> Any:
    return 1 if size == other else sympy.cancel(sympy.sympify(size) / sympy.sympify(other))
