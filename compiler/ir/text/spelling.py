"""Names of ops and constants in the text form, and what a printed type says about a value."""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import sympy
import torch
from sympy.printing.precedence import PRECEDENCE
from sympy.printing.str import StrPrinter
from torch import fx
from torch._ops import OpOverload, OpOverloadPacket
from torch.utils._dtype_abbrs import dtype_abbrs

from compiler.errors import GraphError
from compiler.ir import access
from compiler.ir.collectives import OPS, WAIT
from compiler.ir.placement import Placements

DTYPES: Mapping[str, torch.dtype] = {name: dtype for dtype, name in dtype_abbrs.items()}

WORDS: Mapping[str, Any] = {
    **DTYPES,
    "none": None,
    "true": True,
    "false": False,
    "inf": math.inf,
    "nan": math.nan,
    **{
        name: getattr(torch, name)
        for name in (
            *("strided", "sparse_coo", "contiguous_format", "preserve_format"),
            *("channels_last", "channels_last_3d"),
        )
    },
}
"""Constants written as a bare word."""

CONSTANTS: Mapping[Any, str] = {
    item: word
    for word, item in WORDS.items()
    if isinstance(item, torch.dtype | torch.layout | torch.memory_format)
}

PYTHON: Mapping[str, Callable[..., Any]] = {
    **{
        name.strip("_"): getattr(operator, name)
        for name in (
            *("add", "sub", "mul", "floordiv", "truediv", "mod", "pow", "neg", "pos", "getitem"),
            *("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_", "lshift", "rshift"),
        )
    },
    **{
        name: getattr(torch, name)
        for name in ("sym_float", "sym_int", "sym_max", "sym_min", "sym_not", "sym_ite", "sym_sum")
    },
    "ceil": math.ceil,
    "floor": math.floor,
    "trunc": math.trunc,
}
"""Python functions on numbers that occur in graphs, written ``py.name``."""

COMM = {f"comm.{kind}": op for op, kind in OPS.items()}
COMM_NAMES: Mapping[object, str] = {op: name for name, op in COMM.items()}
COMM_STARTS = {f"{name}_start": op for name, op in COMM.items()}
"""Collectives that are not directly followed by their only use, a wait."""

NAMED: Mapping[str, Callable[..., Any]] = {
    "comm.wait": WAIT,
    **{f"py.{name}": function for name, function in PYTHON.items()},
}
"""Ops that are not named as in ``torch.ops``."""

NAMES: Mapping[object, str] = {op: name for name, op in NAMED.items()}

ATTRIBUTES: Mapping[str, str] = {
    "reduce_op": "op",
    "group_size": "group_size",
    "output_split_sizes": "output_splits",
    "input_split_sizes": "input_splits",
    "src": "src",
}
"""Schema argument of a collective -> its attribute in the text; ``group_name`` is apart."""


def op_name(target: object) -> str | None:
    """Return ``namespace.op``, with the overload unless it is ``default``; None for no op."""
    if isinstance(target, OpOverload) and target is not WAIT:
        name: str = target._schema.name.replace("::", ".")
        overload: str = target._schema.overload_name
        return f"{name}.{overload}" if overload else name
    return NAMES.get(target) if callable(target) else None


def find_op(name: str) -> Callable[..., Any]:
    """Return the op that ``op_name`` calls ``name``.

    Raises:
        GraphError: there is no such op.
    """
    if name in NAMED:
        return NAMED[name]
    namespace, _, path = name.partition(".")
    op, _, overload = path.partition(".")
    packet = getattr(getattr(torch.ops, namespace), op, None) if op else None
    remedy = "write namespace.op, and import the library that registers the op before parsing"
    if namespace in ("comm", "py"):
        remedy = f"one of {', '.join(x for x in (*COMM, *NAMED) if x.startswith(namespace))}"
    elif isinstance(packet, OpOverloadPacket):
        overloads: list[str] = packet.overloads()  # type: ignore[no-untyped-call]
        if overload != "default" and (overload or "default") in overloads:
            return getattr(packet, overload or "default")  # type: ignore[no-any-return]
        remedy = f"one of {', '.join(op_name(getattr(packet, x)) or '' for x in overloads)}"
    raise GraphError(f"unknown op {str(name)!r}", remedy=remedy)


def quoted(text: str) -> str:
    """Return ``text`` as a string of the text form."""
    return json.dumps(text, ensure_ascii=False)


def name_text(text: str) -> str:
    """Return ``text`` bare where it is an identifier, else quoted."""
    return text if re.fullmatch(r"[A-Za-z_]\w*", text, re.ASCII) else quoted(text)


def parenthesized(texts: Iterable[str]) -> str:
    """Return ``(a, b)``, and ``(a,)`` of one."""
    listed = list(texts)
    return f"({', '.join(listed)}{',' * (len(listed) == 1)})"


def constant(item: Any) -> str | None:
    """Return a constant as text, which the grammar's ``item`` reads back; None if it has none."""
    match item:
        case None | bool():
            return str(item).lower()
        case int():
            return str(int(item))
        case float():
            return repr(float(item))
        case str():
            return quoted(item)
        case torch.device():
            return f"@{item}"
        case torch.dtype() | torch.layout() | torch.memory_format():
            return CONSTANTS.get(item)
    return None


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
        size = "" if self.expression is None else f"({size_text(self.expression)})"
        return f"{self.kind}{size}"


@dataclass(frozen=True)
class ConstantType:
    """A Python number, string or None, which the type spells out."""

    value: float | str | None

    def __str__(self) -> str:
        kind = next(
            (kind for kind in (bool, int, float, str) if isinstance(self.value, kind)), None
        )
        return f"{kind.__name__}({constant(self.value)})" if kind else "none"


@dataclass(frozen=True)
class TupleType:
    """Several results, a tuple or a list."""

    items: tuple[ValueType, ...]

    def __str__(self) -> str:
        return parenthesized(map(str, self.items))


ValueType = TensorType | SymbolType | ConstantType | TupleType


@dataclass(frozen=True)
class Declaration:
    """What a text declares of a value, per rank.

    Attributes:
        type: element type and per-rank shape.
        strides: of inputs and attributes; None for contiguous ones and for computed values.
        placements: per mesh axis, None where the text does not say.
    """

    type: ValueType
    strides: tuple[Size, ...] | None
    placements: Placements | None


def type_of(value: Any) -> ValueType:
    """Return the type of what a node computes.

    Raises:
        GraphError: something that has no text form.
    """
    match value:
        case torch.Tensor() if value.layout is torch.strided and value.dtype in CONSTANTS:
            return TensorType(value.dtype, tuple(map(size_of, value.shape)), str(value.device))
        case torch.SymInt():
            return SymbolType("sym", size_of(value))
        case torch.SymFloat():
            return SymbolType("symfloat")
        case torch.SymBool():
            return SymbolType("symbool")
        case None | bool() | int() | float() | str():
            return ConstantType(value)
        case list() | tuple():
            return TupleType(tuple(map(type_of, value)))
    about = f"{value.dtype}, {value.layout}" if isinstance(value, torch.Tensor) else repr(value)
    raise GraphError("a value has no text form", found=about, remedy="keep it out of the graph")


def result_of(node: fx.Node) -> Any:
    """Return what the node computes; None for an op without results, whose node need not say so.

    Raises:
        GraphError: a node with a result and without ``meta["val"]``.
    """
    schema = getattr(node.target, "_schema", None)
    return access.value(node) if schema is None or schema.returns else None


def size_of(size: int | torch.SymInt) -> Size:
    """Return a size as an int or as the sympy expression behind it."""
    if isinstance(size, int):
        return int(size)
    expression = size.node.expr
    return int(expression) if expression.is_number else expression


def strides_of(value: torch.Tensor) -> tuple[Size, ...] | None:
    """Return the strides of a tensor, None where they are those of a contiguous one."""
    sizes, strides = tuple(map(size_of, value.shape)), tuple(map(size_of, value.stride()))
    expected: Size = 1
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if stride != expected and size != 1:
            return strides
        expected = expected * size
    return None


def tensors(value_type: ValueType) -> Iterator[TensorType]:
    """Yield the tensor types in ``value_type``."""
    if isinstance(value_type, TensorType):
        yield value_type
    elif isinstance(value_type, TupleType):
        for item in value_type.items:
            yield from tensors(item)


def symbols(value_type: ValueType) -> Iterator[sympy.Symbol]:
    """Yield the symbols in ``value_type``, in order and with repeats."""
    sizes: list[Size] = [size for tensor in tensors(value_type) for size in tensor.shape]
    if isinstance(value_type, SymbolType) and value_type.expression is not None:
        sizes = [value_type.expression]
    elif isinstance(value_type, TupleType):
        for item in value_type.items:
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
    """Return a size as text: an integer or an expression over symbols."""
    return str(size) if isinstance(size, int) else str(_SizePrinter().doprint(size))


def sizes_text(sizes: tuple[Size, ...]) -> str:
    """Return ``[size, …]``."""
    return "[" + ", ".join(map(size_text, sizes)) + "]"
