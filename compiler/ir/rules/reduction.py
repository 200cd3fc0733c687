"""Ops that reduce or accumulate along dimensions."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from functools import partial
from math import prod
from typing import Any

from compiler.ir.rules.builders import Rule, converted, mapped, table, whole_but
from compiler.ir.rules.meaning import RESHAPE, Call, Meaning, Selection, Term


def _reduced(call: Call) -> tuple[int, ...]:
    """Return the dimensions an op reduces: those named by ``dim``, all if it names none."""
    rank, named = len(call.shapes[0]), call.arguments.get("dim")
    if named is None or named == ():
        return tuple(range(rank))
    many: tuple[Any, ...] = named if isinstance(named, tuple) else (named,)
    return tuple(sorted(int(d) % max(rank, 1) for d in many))


def _map(call: Call) -> object:
    """Return the map that adds up what an op reduces: of one element each, the same elements."""
    along = _reduced(call)
    return RESHAPE if all(call.shapes[0][d] == 1 for d in along) else ("sum", along)


def summed(call: Call) -> Meaning:
    """Sum over dimensions: a contraction with ones."""
    if converted(call):
        return reduced(call)
    return mapped(_map(call), whole_but(call, _reduced(call), contracts=True))


def mean(call: Call) -> Meaning:
    """Sum over dimensions / n: linear, but no sum over blocks, since each has an n of its own.

    Where n is a symbol, or zero, the mean is a linear map of its own.
    """
    if converted(call):
        return reduced(call)
    along = _reduced(call)
    sizes = [call.shapes[0][d] for d in along] if call.shapes[0] else []
    n = prod(sizes) if all(type(s) is int for s in sizes) else 0
    own = Term((0,), map=("mean", along))
    term = Term((0,), map=_map(call), coefficient=Fraction(1, n)) if n else own
    return replace(reduced(call), terms=(term,))


def reduced(call: Call) -> Meaning:
    """A maximum, product, norm or the like over dimensions."""
    return Meaning(dims=whole_but(call, _reduced(call)))


def combined(call: Call, combine: str) -> Meaning:
    """A maximum, minimum or product of the elements along dimensions; of one element, itself."""
    if converted(call):
        return reduced(call)
    term = Term((0,), map=_map(call))
    if term.map == RESHAPE:
        return replace(reduced(call), terms=(term,), selection=Selection((term,)))
    return replace(reduced(call), selection=Selection((term,), combine))


def cumulative(call: Call) -> Meaning:
    """Running sum along a dimension."""
    terms = None if converted(call) else (Term((0,), map=("cumsum", call.dim())),)
    return Meaning(terms=terms, dims=whole_but(call, (call.dim(),)))


COMBINED = {
    "max": ("amax", "max.default"),
    "min": ("amin", "min.default"),
    "product": ("prod.default", "prod.dim_int"),
}
"""Which reduction the ops are that of the elements along dimensions."""

TABLE: dict[Rule, tuple[str, ...]] = {
    summed: ("sum.default", "sum.dim_IntList"),
    mean: ("mean.default", "mean.dim"),
    **{partial(combined, combine=kind): names for kind, names in COMBINED.items()},
    reduced: ("all", "any", "argmax", "argmin", "linalg_vector_norm", "logsumexp",
              "max.dim", "min.dim", "norm.Scalar",
              "norm.ScalarOpt_dim", "norm.ScalarOpt_dim_dtype", "norm.ScalarOpt_dtype",
              "std.default", "std.dim", "std.correction",
              "var.default", "var.dim", "var.correction", "var_mean.default", "var_mean.dim",
              "var_mean.correction"),
    cumulative: ("cumsum.default",),
}  # fmt: skip
RULES = table(TABLE)
