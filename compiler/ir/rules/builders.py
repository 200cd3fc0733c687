"""Build the meanings that several rules share: pointwise ops, products, reshapes, tables of ops.

A rule is a function from a ``Call`` to its ``Meaning``; its docstring states the law. Where rules
of a family differ in a parameter alone, ``partial`` names it in the table.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from fractions import Fraction
from functools import wraps
from typing import Any

import sympy
import torch

from compiler.ir import access
from compiler.ir.rules.meaning import BROADCAST, Call, Dims, Labels, Meaning, Selection, Term

Rule = Callable[[Call], Meaning]


def unlabelled(call: Call) -> tuple[Labels, ...]:
    """Return labels without factors for every operand."""
    return tuple((None,) * len(shape) for shape in call.shapes)


def factors(rank: int, whole: Collection[int] = (), gone: Collection[int] = ()) -> Labels:
    """Return 0 .. rank - 1 as labels: None for the dimensions ``whole``, without those ``gone``."""
    return tuple(None if d in whole else d for d in range(rank) if d not in gone)


def labelled(call: Call, operands: Mapping[int, Labels], result: Labels) -> Dims:
    """Return ``result``, and ``operands`` by index; the others have no factors."""
    return Dims(
        tuple(operands.get(i, (None,) * len(shape)) for i, shape in enumerate(call.shapes)),
        (result,),
    )


def aligned(shape: tuple[Any, ...], result: tuple[Any, ...], labels: Labels) -> Labels:
    """Return the labels of an operand broadcast to ``result``, whose dimensions have ``labels``.

    A dimension of size one that is stretched has no factor.
    """
    offset = len(result) - len(shape)
    return tuple(
        labels[d + offset] if size == result[d + offset] else None for d, size in enumerate(shape)
    )


def pointwise_dims(call: Call) -> Dims:
    """Every result element depends on the elements at its own place."""
    labels = factors(len(call.result))
    return Dims(tuple(aligned(s, call.result, labels) for s in call.shapes), (labels,))


def pointwise(call: Call, terms: Iterable[Term] | None = None) -> Meaning:
    """A function of the elements at one place: a sum of ``terms``, uninterpreted without them."""
    listed = None if terms is None else tuple(terms)
    return Meaning(terms=listed, dims=pointwise_dims(call), pointwise=True)


def opaque(_: Call) -> Meaning:
    """An uninterpreted function that needs everything whole."""
    return Meaning()


def mapped(
    key: object, dims: Dims | None = None, *, operand: int = 0, fixed: tuple[int, ...] = ()
) -> Meaning:
    """Return the meaning of the map ``key``, linear in one operand."""
    return Meaning(terms=(Term((operand,), map=key, fixed=fixed),), dims=dims)


def converted(call: Call, operands: Iterable[int] | None = None) -> bool:
    """Return whether one of ``operands`` (all) is cast to the result's element type."""
    read = range(len(call.dtypes)) if operands is None else operands
    return any(call.dtypes[i] != call.result_dtypes[0] for i in read)


def product(
    call: Call,
    operands: Mapping[int, Labels],
    result: Labels,
    *,
    key: object = None,
    fixed: tuple[int, ...] = (),
) -> Meaning:
    """The product of ``operands`` (index -> labels), summed over the labels ``result`` lacks.

    Without a ``key`` it is exactly the einsum that the labels write down, so that all ops that
    compute one einsum share its map.
    """
    if converted(call, operands):
        return Meaning()
    number: dict[int | str | None, int] = {}
    spec = [
        tuple(number.setdefault(name, len(number)) for name in labels)
        for labels in (*operands.values(), result)
    ]
    term = Term(tuple(operands), map=key or ("einsum", *spec), fixed=fixed)
    return Meaning(terms=(term,), dims=labelled(call, operands, result))


def with_addend(
    call: Call, scaled: Meaning, name: str = "bias", labels: Labels | None = None
) -> Meaning:
    """``beta * addend + alpha * scaled``, the addend broadcast, or with dimensions of ``labels``.

    Contracted dimensions are needed whole: block by block the addend would be added each time.
    Without an argument ``name``, ``scaled`` is all.
    """
    addend, alpha, beta = call.index(name), coefficient(call, "alpha"), coefficient(call, "beta")
    if addend is None:
        return scaled
    if alpha is None or beta is None or converted(call, (addend,)):
        return Meaning()
    if scaled.terms is None or scaled.dims is None:
        return Meaning()
    (result,) = scaled.dims.results
    operands = [tuple(d if d in result else None for d in s) for s in scaled.dims.operands]
    at_end = aligned(call.shapes[addend], call.result, result)
    operands[addend] = at_end if labels is None else labels
    key: object = BROADCAST if labels is None else ("addend", labels)
    terms = (
        Term((addend,), map=key, coefficient=beta),
        *(replace(t, coefficient=t.coefficient * alpha) for t in scaled.terms),
    )
    return replace(scaled, terms=terms, dims=Dims(tuple(operands), (result,)))


def linear_map(call: Call, *names: str, fixed: Iterable[str] = (), dims: Dims | None) -> Meaning:
    """Jointly linear in ``names``, one term each; the map depends on ``fixed`` and statics."""
    operands = {name: call.operand(name) for name in names}
    if converted(call, operands.values()):
        return Meaning(dims=dims)
    fixed_operands = tuple(call.operand(name) for name in fixed)
    terms = tuple(
        Term((i,), map=(call.key, name), fixed=fixed_operands) for name, i in operands.items()
    )
    return Meaning(terms=terms, dims=dims)


def moving(rule: Rule, fill: float | None = None) -> Rule:
    """``rule`` of an op that only moves elements: its terms say where to, ``fill`` what is left."""

    @wraps(rule)
    def with_selection(call: Call) -> Meaning:
        meaning = rule(call)
        chosen = None if meaning.terms is None else Selection(meaning.terms, fill=fill)
        return replace(meaning, selection=chosen)

    return with_selection


def combining(rule: Rule, combine: str) -> Rule:
    """``rule`` of an elementwise op that combines the elements of its operands."""

    @wraps(rule)
    def with_selection(call: Call) -> Meaning:
        terms = tuple(Term((i,)) for i in range(len(call.shapes)))
        chosen = Selection(terms, combine) if len(terms) > 1 and not converted(call) else None
        return replace(rule(call), selection=chosen)

    return with_selection


def scalar(value: Any) -> Fraction | None:
    """Return a finite Python number, the same on every rank, as an exact rational; else None."""
    if isinstance(value, access.RankNumber) or not isinstance(value, int | float):
        return None
    return Fraction(value) if value == value and abs(value) != float("inf") else None


def coefficient(call: Call, name: str) -> Fraction | None:
    """Return the static factor ``name`` (alpha, beta), 1 where the op has no such argument."""
    return scalar(call.arguments.get(name, 1))


def whole_but(call: Call, needed: Iterable[int], *, contracts: bool = False) -> Dims:
    """Operand 0 and the results have the same dimensions, factors unless ``needed`` whole.

    Those are gone in results of fewer dimensions. An op that ``contracts`` them may be cut there.
    """
    rank = len(call.shapes[0])
    whole = {d % max(rank, 1) for d in needed}
    operand = factors(rank, () if contracts else whole)
    result = factors(rank, whole, gone=() if len(call.result) == rank else whole)
    return Dims((operand, *unlabelled(call)[1:]), (result,) * len(call.result_shapes))


def along_dim(call: Call) -> Meaning:
    """An uninterpreted function along ``dim`` (softmax, sort, …), which is needed whole."""
    return Meaning(dims=whole_but(call, (call.dim(),)))


def reshaped(before: tuple[Any, ...], after: tuple[Any, ...]) -> tuple[Labels, Labels]:
    """Return the labels of a row-major reshape.

    Sizes are matched in groups of equal product; the leading dimensions of a group correspond,
    since a block of leading rows is a contiguous block on both sides.
    """
    left: list[int | None] = [None] * len(before)
    right: list[int | None] = [None] * len(after)
    i = j = 0
    while i < len(before) and j < len(after):
        if (before[i] == 1) != (after[j] == 1):
            i, j = (i + 1, j) if before[i] == 1 else (i, j + 1)
            continue
        left[i] = right[j] = i
        a, b = sympy.sympify(before[i]), sympy.sympify(after[j])
        i, j = i + 1, j + 1
        while a != b and (i < len(before) or j < len(after)):
            if i < len(before) and (j == len(after) or _smaller(a, b)):
                a, i = sympy.expand(a * before[i]), i + 1
            else:
                b, j = sympy.expand(b * after[j]), j + 1
    return tuple(left), tuple(right)


def _smaller(a: Any, b: Any) -> bool:
    """Return whether product ``a`` has to grow next: it divides ``b``, or is the smaller number."""
    if a.is_number and b.is_number:
        return bool(a < b)
    quotient = sympy.cancel(b / a)
    return bool(quotient.is_integer) and quotient != 1


def overloads(*names: str) -> list[object]:
    """Return the ATen ops of these names (``max``: all overloads, ``max.other``: one).

    Left out: ops that mutate or write to an ``out`` argument, ops without a tensor among their
    results (assertions, TorchScript's arithmetic on numbers), overloads for named dimensions,
    names this torch does not have.
    """
    ops: list[object] = []
    for name in names:
        base, _, wanted = name.partition(".")
        packet = getattr(torch.ops.aten, base, None)
        for overload in packet.overloads() if packet is not None else ():
            op = getattr(packet, overload)
            produces = any("Tensor" in str(r.type) for r in op._schema.returns)
            # Releases differ in whether they call a dimension's name a str or a Dimname.
            named = "name" in overload.lower()
            if wanted in ("", overload) and produces and not (op._schema.is_mutable or named):
                ops.append(op)
    return ops


def table(rows: dict[Rule, tuple[str, ...]]) -> dict[object, Rule]:
    """Return rule -> names of ATen ops as op -> rule."""
    return {op: rule for rule, names in rows.items() for op in overloads(*names)}
