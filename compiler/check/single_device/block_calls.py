"""Calls on blocks: which factors are cut alike, and what a call is on one block of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

from compiler.check.single_device.cuts import Cuts
from compiler.check.single_device.factors import Factors
from compiler.ir.rules import RANGE, RESHAPE, Call, Meaning, Term, meaning_of
from compiler.ir.rules.meaning import Labels


def permutation(factors: Factors) -> tuple[int, ...] | None:
    """Return the order in which a call puts the dimensions of its operand; None for others."""
    terms = factors.rule.terms
    if not terms or not isinstance(terms[0].map, tuple) or terms[0].map[0] != "permute":
        return None
    order: tuple[int, ...] = terms[0].map[1]
    return order


def terms_of(rule: Meaning, call: Call, result: int) -> tuple[Term, ...] | None:
    """Return the terms of one result; None for a function without any."""
    if not rule.parts:
        if rule.terms is None or len(call.result_shapes) == 1:
            return rule.terms
        return tuple(replace(t, map=("result", result, t.map)) for t in rule.terms)
    part = rule.parts[result]
    names_elements = part == RESHAPE or (isinstance(part, tuple) and part[0] == RANGE)
    return (Term((0,), map=part if names_elements else ("part", result, part)),)


def term_on(on_cell: Call, rule: Meaning, result: int, number: int) -> Term:
    """Return a term of a call as its rule has it on a block, with the coefficient on the whole."""
    terms, own = terms_of(rule, on_cell, result), meaning_of(on_cell)
    assert terms is not None, "the call has terms"
    own_terms = None if own is None else terms_of(own, on_cell, result)
    term = terms[number]
    if own_terms is None or [t.reads for t in own_terms] != [t.reads for t in terms]:
        return replace(term, map=("on a block", term.map))
    return replace(own_terms[number], coefficient=term.coefficient)


def block_sizes(
    cuts: Cuts, tensors: Sequence[tuple[Labels, Sequence[int]]]
) -> dict[Any, tuple[Any, ...]]:
    """Return factor -> sizes of its blocks, of those that are cut alike in all that carry them."""
    bounds_of: dict[Any, list[Fraction]] = {}
    sizes: dict[Any, tuple[Any, ...]] = {}
    for labels, dims in tensors:
        for label, dim in zip(labels, dims, strict=True):
            bounds = cuts.bounds(dim)
            if label not in bounds_of and label is not None:
                bounds_of[label], sizes[label] = bounds, cuts.blocks(dim)
            elif label is not None and bounds_of[label] != bounds:
                sizes[label] = ()
    return {label: own for label, own in sizes.items() if len(own) > 1}


@lru_cache(maxsize=1 << 14)
def on_cell(call: Call, factors: Factors, carried: tuple[Any, ...], sizes: tuple[Any, ...]) -> Call:
    """Return the call on one block: the same, on tensors of the block's sizes."""
    if not carried:
        return call
    size_of = dict(zip(carried, sizes, strict=True))
    first = _first_sizes(call, factors)

    def resized(shapes: Sequence[Any], labels: Sequence[Labels]) -> tuple[Any, ...]:
        return tuple(
            tuple(
                _scaled(size, first[label], size_of[label]) if label in size_of else size
                for size, label in zip(shape, own, strict=True)
            )
            for shape, own in zip(shapes, labels, strict=True)
        )

    return replace(
        call,
        shapes=resized(call.shapes, factors.operands),
        result_shapes=resized(call.result_shapes, factors.results),
    )


def _first_sizes(call: Call, factors: Factors) -> dict[Any, Any]:
    """Return factor -> its size in the first tensor that carries it, as ``_block_sizes`` has it."""
    first: dict[Any, Any] = {}
    for shapes, labels in ((call.shapes, factors.operands), (call.result_shapes, factors.results)):
        for shape, own in zip(shapes, labels, strict=True):
            for size, label in zip(shape, own, strict=True):
                if label is not None:
                    first.setdefault(label, size)
    return first


def _scaled(size: Any, first: Any, block: Any) -> Any:
    """Return the size of a block of a dimension that is cut at the fractions of another."""
    return block if size == first else size * block // first
