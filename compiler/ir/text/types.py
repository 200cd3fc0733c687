"""What a printed type says about a value, and how sizes are written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import sympy
import torch
from sympy.printing.precedence import PRECEDENCE
from sympy.printing.str import StrPrinter
from torch import fx

from compiler.errors import GraphError
from compiler.ir import access
from compiler.ir.placement import Placements
from compiler.ir.text.spelling import CONSTANTS, float_text, quoted

Size: TypeAlias = "int | sympy.Expr"


@dataclass(frozen=True)
class TensorType:
    """A tensor of one rank; ``device`` as ``str(torch.device)``."""

    dtype: torch.dtype
    shape: tuple[Size, ...]
    device: str = "cpu"

    def __str__(self) -> str:
        where = "" if self.device == "cpu" else f"@{self.device}"
        return f"{CONSTANTS[self.dtype]}{sizes_text(self.shape)}{where}"


@dataclass(frozen=True)
class SymbolType:
    """A number that depends on symbols: ``sym`` with its expression, ``symfloat``, ``symbool``."""

    kind: str
    expression: Size | None = None

    def __str__(self) -> str:
        return (
            self.kind if self.expression is None else f"{self.kind}({size_text(self.expression)})"
        )


@dataclass(frozen=True)
class ConstantType:
    """A Python number, string or None, which the type spells out."""

    value: float | str | None

    def __str__(self) -> str:
        match self.value:
            case None:
                return "none"
            case bool():
                return f"bool({str(self.value).lower()})"
            case int():
                return f"int({self.value})"
            case str():
                return f"str({quoted(self.value)})"
        return f"float({float_text(self.value)})"


@dataclass(frozen=True)
class TupleType:
    """Several results, a tuple or a list."""

    items: tuple[ValueType, ...]

    def __str__(self) -> str:
        return "(" + ", ".join(map(str, self.items)) + ("," * (len(self.items) == 1)) + ")"


ValueType = TensorType | SymbolType | ConstantType | TupleType


@dataclass(frozen=True)
class Held:
    """What a text says that each rank holds of a value.

    Attributes:
        type: element type and per-rank shape.
        strides: of inputs and attributes; None for contiguous ones and for computed values.
        placements: per mesh axis, None where the text does not say.
    """

    type: ValueType
    strides: tuple[Size, ...] | None
    placements: Placements | None


def type_of(found: Any) -> ValueType:
    """The type of what a node computes.

    Raises:
        GraphError: something that has no text form.
    """
    match found:
        case torch.Tensor() if found.layout is torch.strided and found.dtype in CONSTANTS:
            return TensorType(found.dtype, tuple(map(size_of, found.shape)), str(found.device))
        case torch.SymInt():
            return SymbolType("sym", size_of(found))
        case torch.SymFloat():
            return SymbolType("symfloat")
        case torch.SymBool():
            return SymbolType("symbool")
        case None | bool() | int() | float() | str():
            return ConstantType(found)
        case list() | tuple():
            return TupleType(tuple(map(type_of, found)))
    about = f"{found.dtype}, {found.layout}" if isinstance(found, torch.Tensor) else repr(found)
    raise GraphError("a value has no text form", found=about, remedy="keep it out of the graph")


def held_by(node: fx.Node) -> Any:
    """What the node computes; None for an op without results, whose node need not say so.

    Raises:
        GraphError: a node with a result and without ``meta["val"]``.
    """
    schema = getattr(node.target, "_schema", None)
    return access.value(node) if schema is None or schema.returns else None


def size_of(size: int | torch.SymInt) -> Size:
    """A size as an int or as the sympy expression behind it."""
    if isinstance(size, int):
        return int(size)
    expression = size.node.expr
    return int(expression) if expression.is_number else expression


def strides_of(found: torch.Tensor) -> tuple[Size, ...] | None:
    """Strides of a tensor, None where they are those of a contiguous one."""
    sizes, strides = tuple(map(size_of, found.shape)), tuple(map(size_of, found.stride()))
    expected: Size = 1
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if stride != expected and size != 1:
            return strides
        expected = expected * size
    return None


def tensors(found: ValueType) -> Iterator[TensorType]:
    """The tensor types in ``found``."""
    if isinstance(found, TensorType):
        yield found
    elif isinstance(found, TupleType):
        for item in found.items:
            yield from tensors(item)


def symbols(found: ValueType) -> Iterator[sympy.Symbol]:
    """The symbols in ``found``, in order and with repeats."""
    sizes: list[Size] = [size for tensor in tensors(found) for size in tensor.shape]
    if isinstance(found, SymbolType) and found.expression is not None:
        sizes = [found.expression]
    elif isinstance(found, TupleType):
        for item in found.items:
            if isinstance(item, SymbolType):
                yield from symbols(item)
    for size in sizes:
        if not isinstance(size, int):
            yield from sorted(size.free_symbols, key=lambda s: str(s.name))


class _SizePrinter(StrPrinter):  # type: ignore[misc]
    """Sympy's text, with ``floordiv`` for PyTorch's FloorDiv because ``//`` starts a comment."""

    printmethod = "_size_text"

    def _print_FloorDiv(self, expr: sympy.Expr) -> str:  # noqa: N802 -- sympy's naming
        atom = PRECEDENCE["Atom"]
        return " floordiv ".join(self.parenthesize(x, atom, strict=True) for x in expr.args)


@lru_cache(maxsize=4096)
def size_text(size: Size) -> str:
    """A size as text: an integer or an expression over symbols."""
    return str(size) if isinstance(size, int) else str(_SizePrinter().doprint(size))


def sizes_text(sizes: tuple[Size, ...]) -> str:
    """``[size, …]``."""
    return "[" + ", ".join(map(size_text, sizes)) + "]"
