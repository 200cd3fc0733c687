"""What one call of an op means: how it depends on each operand, and how its dimensions relate.

This is the trusted base: planner, placement analysis and checker read meanings and nothing else
about ops, and every rule is tested against the kernel it speaks of.

Dependence on data. An op is a sum of *terms*; each term is multilinear in its ``operands``:

    op(x) = sum over terms of  coefficient * map[fixed](x[operands[0]], x[operands[1]], …)

so it maps partial sums to partial sums exactly where every term has one partial operand and all
its other operands, the ``fixed`` ones too, are the same on every rank.
An op with no terms (``terms is None``) is an uninterpreted function of everything it reads.

Dependence on elements. An op may be a ``Selection`` of its operands' elements, in places that do
not depend on them. It then commutes with reductions that work element by element, max, min and
product over ranks as well as sums.

Dependence on dimensions. Every dimension of operands and results carries a *factor* label or None.
Cutting a factor into blocks, in every operand dimension that carries it, cuts the result the same
way (factor in the result), or yields partial sums (factor only in operands: then the op has terms
and every one carries the factor). A dimension with label None is needed whole. Static arguments
that state the result's size are cut along.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from math import lcm
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch.utils._sympy.functions import FloorDiv, Mod

from compiler.errors import GraphError
from compiler.ir import access

Labels = tuple[int | str | None, ...]

SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
PLAIN = frozenset((int, float, bool, str, type(None), access.Operand))

BROADCAST = "broadcast"
"""Map of a pointwise term: operands are broadcast to the result's shape and multiplied."""

DIMS = frozenset(("dim", "dims", "dim0", "dim1"))
"""Arguments of ATen ops that are numbers of dimensions, which may be counted from the last."""

RESHAPE = "reshape"
"""Map of a term that keeps the elements and their row-major order."""

RANGE = "range"
"""First part of the key of a map to a range of the operand, which the key names alone."""


@dataclass(frozen=True)
class Term:
    """``coefficient * map[fixed](operands…)``; without operands, the constant ``coefficient``.

    Attributes:
        operands: indices of the data operands the term is linear in, each.
        map: BROADCAST, RESHAPE, or a key that with the operands' shapes determines the map; one
            that begins with RANGE determines it alone.
        fixed: indices of the operands that the map itself depends on, in any way.
        coefficient: exact rational factor.
    """

    operands: tuple[int, ...]
    map: object = BROADCAST
    fixed: tuple[int, ...] = ()
    coefficient: Fraction = Fraction(1)

    @property
    def reads(self) -> tuple[int, ...]:
        """Operands whose elements it depends on."""
        return (*self.operands, *self.fixed)


@dataclass(frozen=True)
class Selection:
    """Every result element is an element of an operand, several combined, or a constant.

    Which ones, the maps of the terms say: each term has one operand and coefficient 1.

    Attributes:
        terms: where the elements of each operand go.
        combine: "max", "min" or "product" of all elements that meet in one place, each counted as
            often as it is put there; empty: no two meet.
        fill: what places hold where no element goes; None: there are no such places.
    """

    terms: tuple[Term, ...]
    combine: str = ""
    fill: float | None = None

    def distributes(self, kind: str, dtype: torch.dtype | None) -> bool:
        """Return whether it commutes with the elementwise ``kind`` of several tensors.

        Args:
            kind: "max", "min" or "product".
            dtype: element type of the result.
        """
        kept = self.fill is None or self.fill == identity(kind, dtype)
        return self.combine in ("", kind) and kept


def identity(kind: str, dtype: torch.dtype | None) -> float:
    """Return what changes no reduction by ``kind``: 0 for sums, 1 for products, an infinity."""
    if kind not in ("max", "min"):
        return 1 if kind == "product" else 0
    if dtype is None or dtype.is_floating_point:
        return float("-inf" if kind == "max" else "inf")
    if dtype is torch.bool:
        return float(kind == "min")
    return torch.iinfo(dtype).min if kind == "max" else torch.iinfo(dtype).max


@dataclass(frozen=True)
class Dims:
    """Factor labels of every dimension: ``operands[i][d]`` and ``results[j][d]``."""

    operands: tuple[Labels, ...]
    results: tuple[Labels, ...]


@dataclass(frozen=True)
class Meaning:
    """The meaning of one call.

    Attributes:
        terms: the op as a sum of multilinear terms, or None: uninterpreted.
        dims: factor labels, or None: every dimension is needed whole.
        selection: how result elements are elements of operands, or None: they are computed.
        parts: of an op of several results that are parts of operand 0, the map to each.
        pointwise: uninterpreted, but element by element, so that it commutes with reshapes.
        casts: the result's element type differs from the operand's: rounding may be lost or won.
        random: another function of the operands on every call and rank.
        fresh: random whatever the operands hold, which lend shapes and types alone.
        rank_dependent: static arguments differ between ranks, and with them the maps: each rank's
            result is the sum of terms, but partial sums in give no partial sum.
    """

    terms: tuple[Term, ...] | None = None
    dims: Dims | None = None
    selection: Selection | None = None
    parts: tuple[object, ...] = ()
    pointwise: bool = False
    casts: bool = False
    random: bool = False
    fresh: bool = False
    rank_dependent: bool = False

    @property
    def reads(self) -> frozenset[int] | None:
        """Operands whose elements matter, not their shape alone; None: all."""
        if self.terms is None:
            return None
        return frozenset(i for term in self.terms for i in term.reads)


@dataclass(frozen=True)
class Call:
    """One call, as the rules see it: pure data, equal for calls that mean the same.

    Attributes:
        target: the op.
        key: op and static arguments as text.
        shapes: per data operand, sizes as ints and sympy expressions; () for no tensor.
        dtypes: per data operand, element type; None for no tensor.
        result_shapes: per result, likewise.
        result_dtypes: per result, likewise.
        arguments: as in ``access.arguments``, but numbers that are symbolic as text, like in
            ``key``: calls are keys of caches, and a SymInt keeps its capture alive. Implied by
            the other fields.
        rank_dependent: whether a static argument differs between ranks.
    """

    target: object
    key: tuple[Any, ...]
    shapes: tuple[tuple[Any, ...], ...]
    dtypes: tuple[torch.dtype | None, ...]
    result_shapes: tuple[tuple[Any, ...], ...]
    result_dtypes: tuple[torch.dtype | None, ...]
    arguments: dict[str, Any] = field(compare=False, repr=False)
    rank_dependent: bool = False

    @staticmethod
    def of(node: fx.Node) -> Call:
        """Return the call that ``node`` makes."""
        result = access.value(node)
        produced = result if isinstance(result, list | tuple) else (result,)
        read = [x.meta.get("val") for x in access.operands(node)]
        shapes, result_shapes = (
            tuple([shape_key(x) for x in values]) for values in (read, produced)
        )
        arguments = named = access.arguments(node)
        if isinstance(node.target, OpOverload) and node.target.namespace == "aten":
            rank = max(map(len, (*shapes[:1], *result_shapes[:1])), default=0)
            counted = {name: _from_first(arguments[name], rank) for name in DIMS & arguments.keys()}
            named = arguments | counted
        return Call(
            target=node.target,
            key=(str(node.target), tuple((name, static_key(x)) for name, x in named.items())),
            shapes=shapes,
            dtypes=tuple([_dtype(x) for x in read]),
            result_shapes=result_shapes,
            result_dtypes=tuple([_dtype(x) for x in produced]),
            rank_dependent=bool(access.rank_constants(node)),
            arguments={
                name: x if type(x) in PLAIN else _without_symbols(x)
                for name, x in arguments.items()
            },
        )

    @property
    def result(self) -> tuple[Any, ...]:
        """Return the shape of the only result."""
        return self.result_shapes[0]

    def index(self, name: str) -> int | None:
        """Return the operand index of argument ``name``, None if it is not a data operand."""
        argument = self.arguments.get(name)
        return argument.index if isinstance(argument, access.Operand) else None

    def operand(self, name: str) -> int:
        """Return the operand index of argument ``name``.

        Raises:
            GraphError: it is not a data operand: PyTorch would not run the call.
        """
        index = self.index(name)
        if index is None:
            raise GraphError(
                f"argument {name!r} of a call of {self.target} must be a tensor",
                found=repr(self.arguments.get(name)),
                remedy="pass a value of the graph",
            )
        return index

    def every(self, name: str) -> tuple[int, ...]:
        """Return the operand indices of argument ``name``, a data operand or a list of them."""
        argument = self.arguments.get(name)
        listed = argument if isinstance(argument, tuple) else (argument,)
        return tuple([x.index for x in listed if isinstance(x, access.Operand)])

    def dim(self, name: str = "dim", of: int = 0) -> int:
        """Return argument ``name`` as a non-negative dimension of operand ``of``."""
        return int(self.arguments[name]) % max(len(self.shapes[of]), 1)


def _without_symbols(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple([_without_symbols(x) for x in value])
    return static_key(value) if isinstance(value, SYMBOLIC) else value


def _from_first(dim: Any, rank: int) -> Any:
    """Count dimensions from the first: of the result, if an op makes some, else of operand 0."""
    if isinstance(dim, tuple):
        return tuple([_from_first(d, rank) for d in dim])
    return dim % max(rank, 1) if type(dim) is int else dim


def _dtype(value: Any) -> torch.dtype | None:
    return value.dtype if isinstance(value, torch.Tensor) else None


def shape_key(value: Any) -> tuple[Any, ...]:
    """Return sizes as ints and sympy expressions, which compare and hash without guards."""
    if not isinstance(value, torch.Tensor):
        return ()
    return tuple([s if type(s) is int else size_key(s) for s in value.shape])


def same_layout(left: fx.Node, right: fx.Node) -> bool:
    """Return whether two values are interchangeable but for the elements of tensors."""
    first, second = access.value(left), access.value(right)
    return first is second or _layout(first) == _layout(second)


def _layout(value: Any) -> tuple[Hashable, ...] | None:
    if not isinstance(value, torch.Tensor):
        return None
    strides = tuple(map(size_key, value.stride()))
    return shape_key(value), strides, value.dtype, value.device


def size_key(size: Any) -> Any:
    """Return a size or number as an int or sympy expression.

    ``s // n`` is ``s / n`` where the capture knows that n divides s.
    """
    if not isinstance(size, torch.SymInt):
        return size
    expression, divisible = size.node.expr, size.node.shape_env.divisible
    if not divisible or not expression.has(FloorDiv):
        return expression
    return _divided(expression, frozenset(divisible))


def step(size: torch.SymInt) -> int:
    """Return the greatest number that the capture knows to divide a size; 1 if it knows none."""
    arguments = (m.args for m in size.node.shape_env.divisible)
    return lcm(*(int(n) for whole, n in arguments if whole == size.node.expr and n.is_Integer))


@lru_cache(maxsize=1 << 12)
def _divided(expression: Any, divisible: frozenset[Any]) -> Any:
    def quotient(whole: Any, n: Any) -> Any:
        return whole / n if Mod(whole, n) in divisible else FloorDiv(whole, n)

    return expression.replace(FloorDiv, quotient)


def static_key(value: Any) -> str:
    """Return a static argument as text, the same on every rank and in every graph of a capture."""
    if isinstance(value, access.Operand):
        return f"%{value.index}"
    if isinstance(value, access.RankNumber):
        return f"rank{value.values}"
    if isinstance(value, tuple):
        return "(" + ", ".join([static_key(x) for x in value]) + ")"
    if isinstance(value, torch.SymInt):
        return _text(size_key(value))
    return str(value)


@lru_cache(maxsize=1 << 12)
def _text(expression: Any) -> str:
    return str(expression)
