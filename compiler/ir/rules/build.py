"""Builders of meanings that several rules share: pointwise ops, einsum-like specifications, views.

A rule is a function from a ``Call`` to its ``Meaning``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

import sympy
import torch

from compiler.ir import access
from compiler.ir.rules.meaning import Call, Dims, Labels, Meaning, Term

Rule = Callable[[Call], Meaning]


def aligned(shape: tuple[Any, ...], result: tuple[Any, ...]) -> Labels:
    """Labels of an operand broadcast to ``result``, whose dimension d has label d.

    A dimension of size one that is stretched has no factor.
    """
    offset = len(result) - len(shape)
    return tuple(d + offset if size == result[d + offset] else None for d, size in enumerate(shape))


def pointwise_dims(call: Call) -> Dims:
    """Every result element depends on the elements at its own place."""
    result = call.result
    return Dims(
        tuple(aligned(shape, result) for shape in call.shapes), (tuple(range(len(result))),)
    )


def pointwise(call: Call) -> Meaning:
    """An uninterpreted function of the elements at one place."""
    return Meaning(dims=pointwise_dims(call), pointwise=True)


def keeping(*whole: str) -> Rule:
    """Uninterpreted, row by row: dimensions named by these arguments are needed whole."""

    def rule(call: Call) -> Meaning:
        rank = len(call.shapes[0])
        named = [call.arguments.get(name) for name in whole]
        needed = {int(d) % max(rank, 1) for d in named if d is not None}
        labels = tuple(None if d in needed else d for d in range(rank))
        return Meaning(dims=Dims((labels,), (labels,) * len(call.result_shapes)))

    return rule


def einsum(spec: str, *names: str, also_fixed: Iterable[str] = ()) -> Rule:
    """A product of the arguments ``names`` contracted as in ``"mk,kn->mn"``; ``.`` is no factor.

    Leading dimensions written ``...`` stand for any number of shared batch dimensions.
    """
    inputs, output = spec.split("->")

    def rule(call: Call) -> Meaning:
        indices = tuple(call.operand(name) for name in names)
        labels: dict[int, Labels] = {}
        for index, written in zip(indices, inputs.split(","), strict=True):
            labels[index] = _written(written, len(call.shapes[index]))
        result = _written(output, len(call.result))
        fixed = tuple(i for n in also_fixed if (i := call.index(n)) is not None)
        everything = tuple(
            labels.get(i, (None,) * len(shape)) for i, shape in enumerate(call.shapes)
        )
        term = Term(indices, map=(spec,), fixed=fixed)
        return Meaning(terms=(term,), dims=Dims(everything, (result,)))

    return rule


def _written(labels: str, rank: int) -> Labels:
    tail = labels.removeprefix("...")
    batch = rank - len(tail) if labels.startswith("...") else 0
    assert batch + len(tail) == rank, f"{labels} does not fit {rank} dimensions"
    return (*(f"b{d - batch}" for d in range(batch)), *(None if c == "." else c for c in tail))


def linear_map(*names: str, fixed: Iterable[str] = (), dims: Callable[[Call], Dims | None]) -> Rule:
    """Jointly linear in ``names``, one term each; the map depends on ``fixed`` and statics."""

    def rule(call: Call) -> Meaning:
        held = tuple(i for name in fixed if (i := call.index(name)) is not None)
        terms = tuple(
            Term((call.operand(name),), map=(call.key, name), fixed=held) for name in names
        )
        return Meaning(terms=terms, dims=dims(call))

    return rule


def scalar(found: Any) -> Fraction | None:
    """A finite Python number as an exact rational, None for anything else."""
    if isinstance(found, access.RankInt | access.RankFloat) or not isinstance(found, int | float):
        return None
    return Fraction(found) if found == found and abs(found) != float("inf") else None


def coefficient(call: Call, name: str) -> Fraction | None:
    """Static factor ``name`` (alpha, beta), 1 where the op has no such argument."""
    return scalar(call.arguments.get(name, 1))


def whole_but(call: Call, needed: Iterable[int], operand: int = 0) -> Dims:
    """Operand and result have the same dimensions; ``needed`` of them are whole, others factors."""
    rank = len(call.shapes[operand])
    held = {d % max(rank, 1) for d in needed}
    labels: Labels = tuple(None if d in held else d for d in range(rank))
    everything = tuple(
        labels if i == operand else (None,) * len(shape) for i, shape in enumerate(call.shapes)
    )
    return Dims(everything, (labels,) * len(call.result_shapes))


def reshaped(before: tuple[Any, ...], after: tuple[Any, ...]) -> tuple[Labels, Labels]:
    """Labels of a row-major reshape.

    Sizes are matched in groups of equal product; the leading dimensions of a group correspond,
    since a block of leading rows is a contiguous block on both sides.
    """
    left: list[int | None] = [None] * len(before)
    right: list[int | None] = [None] * len(after)
    i = j = 0
    while i < len(before) and j < len(after):
        if before[i] == 1 and after[j] != 1:
            i += 1
            continue
        if after[j] == 1 and before[i] != 1:
            j += 1
            continue
        left[i] = right[j] = i
        a, b = sympy.sympify(before[i]), sympy.sympify(after[j])
        i, j = i + 1, j + 1
        while a != b and (i < len(before) or j < len(after)):
            behind = j >= len(after) or (i < len(before) and _smaller(a, b))
            if behind and i < len(before):
                a, i = sympy.expand(a * before[i]), i + 1
            elif j < len(after):
                b, j = sympy.expand(b * after[j]), j + 1
            else:
                break
    return tuple(left), tuple(right)


def _smaller(a: Any, b: Any) -> bool:
    """Whether group product ``a`` has to grow next: it divides ``b``, or is the smaller number."""
    if a.is_number and b.is_number:
        return bool(a < b)
    quotient = sympy.cancel(b / a)
    return bool(quotient.is_integer) and quotient != 1


def overloads(*names: str) -> list[object]:
    """All overloads of these ATen ops that neither mutate nor write to an ``out`` argument.

    A name this torch does not have is left out.
    """
    found: list[object] = []
    for name in names:
        packet = getattr(torch.ops.aten, name, None)
        for overload in packet.overloads() if packet is not None else ():
            op = getattr(packet, overload)
            if not op._schema.is_mutable:
                found.append(op)
    return found


def table(rows: dict[Rule, tuple[str, ...]]) -> dict[object, Rule]:
    """Rule -> names of ATen ops, as op -> rule."""
    return {op: rule for rule, names in rows.items() for op in overloads(*names)}
