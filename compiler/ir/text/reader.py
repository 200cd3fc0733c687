"""Build an SPMD graph from its text: a method per rule of grammar.lark."""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from keyword import iskeyword
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import sympy
import torch
from torch import fx
from torch.utils._sympy import functions
from torch.utils._sympy.numbers import int_oo

from compiler.errors import GraphError
from compiler.ir import access
from compiler.ir.collectives import WAIT
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import Mesh
from compiler.ir.placement import (
    REDUCTIONS,
    Placement,
    Placements,
    Shard,
    parse_placement,
    placements_on,
)
from compiler.ir.text import spelling
from compiler.ir.text.graph_builder import Builder, Range
from compiler.ir.text.spelling import (
    ConstantType,
    Declaration,
    Size,
    SymbolType,
    TensorType,
    TupleType,
    ValueType,
    leaves,
)

if TYPE_CHECKING:
    from lark import Token

OPERATORS: dict[str, Callable[[sympy.Expr, sympy.Expr], sympy.Expr]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "**": operator.pow,
    "floordiv": functions.FloorDiv,
}

SIZE_FUNCTIONS = {
    name: item
    for name, item in vars(functions).items()
    if isinstance(item, type) and issubclass(item, sympy.Expr)
}
PLAIN_TYPES: dict[str, ValueType] = {
    "none": ConstantType(None),
    "symfloat": SymbolType("symfloat"),
    "symbool": SymbolType("symbool"),
}

EXCERPT = 200
"""Characters of a line that errors show, before and behind the place."""


@dataclass(frozen=True)
class Parsed:
    """A graph, and the placements its text states for values that are not inputs."""

    graph: SpmdGraph
    facts: dict[fx.Node, Placements]


class Sum(NamedTuple):
    """An expression in a size."""

    start: Token
    value: sympy.Expr


class Keyword(NamedTuple):
    """A name and what stands behind it."""

    name: Token
    value: Any


class Reader:
    """Builds a graph while lark reads its text.

    A method per rule of the grammar, called with the rule's children. Its errors are about the
    first token of the rule.
    """

    parsed: Parsed

    def __init__(self, text: str, rank: int, file: str) -> None:
        self.source, self._rank, self._file = text, rank, file
        self._groups: list[tuple[Token, Iterable[Sequence[int]]]] = []
        self._ranges: dict[str, Range] = {}
        self._values: dict[str, fx.Node] = {}
        self._facts: dict[fx.Node, Placements] = {}

    def place(self, at: Token | int) -> str:
        """Return line and column of a token or offset, and the line with a mark under it."""
        offset = at if isinstance(at, int) else at.start_pos or 0
        row = self.source.count("\n", 0, offset) + 1
        start = self.source.rfind("\n", 0, offset) + 1
        first = max(start, offset - EXCERPT)
        line = self.source[first : offset + EXCERPT].split("\n", 1)[0]
        lead = re.sub(r"[^\t]", " ", self.source[first:offset])
        file = f"{self._file}:" if self._file else ""
        return f"{file}{row}:{offset - start + 1}\n    {line}\n    {lead}^"

    def _text(self, token: Token) -> str:
        """Return a name, or the text between the quotes of ``token``."""
        try:
            return str(json.loads(token)) if token.startswith('"') else str(token)
        except json.JSONDecodeError as error:
            raise GraphError(f"not a string: {error.msg}", where=self.place(token)) from None

    def _one_of(self, kind: str, name: str, names: Collection[str], remedy: str = "") -> str:
        """Return ``name``, which must be one of ``names``."""
        if name not in names:
            remedy = remedy or f"one of {', '.join(names)}"
            raise GraphError(f"unknown {kind} {str(name)!r}", remedy=remedy)
        return name

    def _distinct(self, kind: str, entries: Iterable[tuple[Token, Any]]) -> dict[str, Any]:
        """Return ``entries`` by their names, each of which may stand once."""
        by_name: dict[str, Any] = {}
        for token, entry in entries:
            if token in by_name:
                what = f"{kind} {str(token)!r} appears twice"
                raise GraphError(what, where=self.place(token))
            by_name[str(token)] = entry
        return by_name

    def mesh(self, _: Token, *axes: Keyword) -> None:
        self._axes = {name: int(size) for name, size in self._distinct("axis", axes).items()}
        self._mesh = Mesh(self._axes)

    def mesh_axis(self, name: Token, size: Token) -> Keyword:
        return Keyword(name.update(value=self._text(name)), size)

    def ranks(self, *children: Any) -> tuple[Any, ...]:
        return children

    sizes = strides = tuple_item = ranks

    def group(self, _: Token, name: Token, ranks: Iterable[Sequence[int]]) -> None:
        self._groups.append((name.update(value=self._text(name)), ranks))
        self._mesh = Mesh(self._axes, self._distinct("group", self._groups))

    def along(self, *axes: str) -> Iterable[Sequence[int]]:
        return self._mesh.along(*axes).ranks

    def replica_group(self, *ranks: Token) -> list[int]:
        return list(map(int, ranks))

    def symbol(self, name: Token, low: Any, high: Any) -> None:
        if name in self._ranges or "." in name:
            what = "is declared twice" if name in self._ranges else "cannot be a symbol"
            raise GraphError(f"{str(name)!r} {what}")
        if not low <= high or low == int_oo or high == -int_oo:
            remedy = "write least and greatest value, [2, inf] for any size"
            raise GraphError(f"the range of {str(name)!r} holds no size", remedy=remedy)
        self._ranges[str(name)] = (low, high)

    def bound(self, minus: Token | None, size: Token) -> Any:
        number = int_oo if size == "inf" else int(size)
        return -number if minus else number

    def header(self, *_: None) -> None:
        if not 0 <= self._rank < self._mesh.size:
            raise GraphError(
                "rank= is not a rank of the graph's mesh",
                found=f"{self._rank}, the mesh has {self._mesh.size} ranks",
                remedy=f"a rank in 0 .. {self._mesh.size - 1}",
            )
        self._builder = Builder(self._mesh, self._ranges)

    def new(self, value: Token) -> str:
        if value in self._values:
            raise GraphError(f"value {value} is defined twice")
        return str(value)

    def input(self, value: str, token: Token, declaration: Declaration) -> None:
        name = self._text(token)
        if not name.isidentifier() or iskeyword(name) or name in self._builder.inputs:
            remedy = "names of inputs are Python identifiers, each different"
            raise GraphError(f"{name!r} cannot name an input", remedy=remedy)
        self._values[value] = self._builder.placeholder(name, declaration)

    def attribute(self, value: str, declaration: Declaration, name: Token) -> None:
        self._values[value] = self._builder.attribute(self._text(name), declaration)

    def result(self, value: str, declaration: Declaration, operand: Token, index: Any) -> None:
        args = (self.value(operand), index)
        self._call(value, declaration, spelling.PYTHON["getitem"], args, {})

    def call(self, value: str, declaration: Declaration, op: Token, *arguments: Any) -> None:
        keywords = [argument for argument in arguments if isinstance(argument, Keyword)]
        args = arguments[: len(arguments) - len(keywords)]
        kwargs = self._distinct("argument", keywords)
        self._call(value, declaration, spelling.find_op(op), args, kwargs)

    def keyword(self, name: Token, value: Any) -> Keyword:
        return Keyword(name, value)

    option = placement = keyword

    def collective(self, value: str, declaration: Declaration, op: Token, *rest: Any) -> None:
        operand, *pairs = rest
        target: Any = spelling.COMM.get(op) or spelling.COMM_STARTS.get(op) or spelling.find_op(op)
        options = self._distinct("attribute", pairs)
        groups = [options.pop(key) for key in ("axis", "group") if key in options]
        if len(groups) != 1:
            raise GraphError(f"{op} needs one axis or one group")
        group = str(groups[0])
        implied = {"group_name": group, "group_size": self._mesh.group(group).axis_size}
        args: list[Any] = [operand]
        for argument in target._schema.arguments[1:]:
            key = spelling.ATTRIBUTES.get(argument.name, "")
            if key not in options and argument.name not in implied:
                raise GraphError(f"{op} needs the attribute {key}")
            args.append(options.pop(key) if key in options else implied[argument.name])
        if options:
            raise GraphError(f"{op} has no attribute {', '.join(options)}")
        self._call(value, declaration, target, tuple(args), {}, waits=op in spelling.COMM)

    def _call(
        self,
        value: str,
        declaration: Declaration,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        waits: bool = False,
    ) -> None:
        """Define ``value`` as a call of ``target``, or as the wait for the collective it starts."""
        if declaration.strides is not None:
            raise GraphError("only inputs and attributes have strides")
        name, call = f"v{value[1:]}", self._builder.call
        node = call(target, args, kwargs, declaration.type, f"{name}_start" if waits else name)
        if waits:
            node = call(WAIT, (node,), {}, declaration.type, name)
        if declaration.placements is not None:
            self._facts[node] = declaration.placements
        self._values[value] = node

    def returned(self, _: Token, *items: Any) -> None:
        graph = self._builder.finish(items[0] if len(items) == 1 else items)
        self.parsed = Parsed(graph, self._facts)

    def axis(self, token: Token) -> Token:
        return token.update(value=self._one_of("axis", self._text(token), self._mesh.axes))

    def group_name(self, token: Token) -> str:
        groups = ", ".join(self._mesh.groups)
        remedy = f"one of {groups}, or add 'group {token} = [[rank, …], …]' after the mesh"
        return self._one_of("group", self._text(token), self._mesh.groups, remedy)

    def reduction(self, token: Token) -> str:
        return self._one_of("reduction", self._text(token), REDUCTIONS)

    def declaration(
        self,
        type_: ValueType,
        strides: tuple[Token, tuple[Size, ...]] | None,
        placements: dict[str, tuple[Token, Placement]] | None,
    ) -> Declaration:
        _, steps = strides or (None, None)
        if steps is not None:
            if not isinstance(type_, TensorType) or len(steps) != len(type_.shape):
                raise GraphError(f"{len(steps)} strides of {type_}")
            if any(isinstance(step, int) and step < 0 for step in steps):
                raise GraphError("a negative stride")
        if placements is None:
            return Declaration(type_, steps, None)
        ranks = (len(leaf.shape) for leaf in leaves(type_) if isinstance(leaf, TensorType))
        dims = min(ranks, default=math.inf)
        for token, placement in placements.values():
            if isinstance(placement, Shard) and placement.dim >= dims:
                what = f"placement {placement} of a tensor of {dims} dimensions"
                raise GraphError(what, where=self.place(token))
        by_axis = {axis: placement for axis, (_, placement) in placements.items()}
        return Declaration(type_, steps, placements_on(self._mesh, by_axis, ""))

    def placements(self, *placements: Keyword) -> dict[str, Any]:
        return self._distinct("axis", placements)

    def kind(self, word: Token, argument: Token | None) -> tuple[Token, Placement]:
        return word, parse_placement(str(word) if argument is None else f"{word}({argument})")

    def tensor_type(
        self, dtype: Token, sizes: tuple[Size, ...], device: Token | None
    ) -> TensorType:
        name = self._one_of("element type", dtype, spelling.DTYPES)
        return TensorType(spelling.DTYPES[name], sizes, str(device or "cpu"))

    def plain_type(self, name: Token) -> ValueType:
        remedy = "write a tensor as f32[4, 8], a number as sym(s0) or int(4)"
        return PLAIN_TYPES[self._one_of("type without sizes", name, PLAIN_TYPES, remedy)]

    def symbol_type(self, size: Size | None) -> SymbolType:
        return SymbolType("sym", size)

    def constant_type(self, name: Token, item: Any) -> ConstantType:
        if type(item).__name__ != name:
            raise GraphError(f"not of type {name}")
        return ConstantType(item)

    def tuple_type(self, *items: ValueType) -> TupleType:
        return TupleType(items)

    def whole(self, size: Token) -> int:
        return int(size)

    def size(self, total: Sum) -> Size:
        if total.value.is_Integer:
            return int(total.value)
        if total.value.is_number:
            raise GraphError("not a size", found=str(total.value))
        return total.value

    def binary(self, left: Sum, operator: Token, right: Sum) -> Sum:
        return self._applied(left.start, OPERATORS[operator], left.value, right.value)

    def negative(self, minus: Token, operand: Sum) -> Sum:
        return Sum(minus, -operand.value)

    def integer(self, token: Token) -> Sum:
        return Sum(token, sympy.Integer(int(token)))

    def declared_symbol(self, name: Token) -> Sum:
        remedy = f"add 'sym {name} in [2, inf]' before the function"
        symbols = self._builder.symbols
        return Sum(name, symbols[self._one_of("symbol", name, symbols, remedy)])

    def function(self, name: Token, *operands: Sum) -> Sum:
        function = SIZE_FUNCTIONS[self._one_of("function", name, SIZE_FUNCTIONS)]
        return self._applied(name, function, *(operand.value for operand in operands))

    def _applied(
        self, start: Token, function: Callable[..., sympy.Expr], *operands: sympy.Expr
    ) -> Sum:
        try:
            return Sum(start, function(*operands))
        except (TypeError, ValueError, ArithmeticError, AssertionError) as error:
            raise GraphError("not a size", found=str(error)) from None

    def value(self, token: Token) -> fx.Node:
        return self._values[self._one_of("value", token, self._values, "define it before its use")]

    def number(self, *tokens: Token) -> int | float:
        text = "".join(tokens)
        return int(text) if text.lstrip("-").isdecimal() else float(text)

    string = _text

    def device(self, token: Token) -> torch.device:
        try:
            return torch.device(token[1:])
        except RuntimeError:
            raise GraphError(f"unknown device {token[1:]!r}") from None

    def word(self, name: Token) -> Any:
        return spelling.WORDS[self._one_of("constant", name, spelling.WORDS)]

    def constructor(self, name: Token, *items: Any) -> Any:
        if self._one_of("constant", name, ("slice", "rank")) == "slice":
            if len(items) != 3:
                raise GraphError("a slice has start, stop and step")
            return slice(*items)
        if len(items) != self._mesh.size or any(type(x) not in (int, float) for x in items):
            raise GraphError(
                "a rank constant has one number per rank",
                found=f"{len(items)} items for {self._mesh.size} ranks",
            )
        if all(type(x) is int for x in items):
            return access.RankInt(items[self._rank], items)
        return access.RankFloat(items[self._rank], tuple(map(float, items)))

    def list_item(self, *items: Any) -> list[Any]:
        return list(items)

    def entry(self, key: Token, item: Any) -> tuple[str, Any]:
        return self._text(key), item

    def dict_item(self, *entries: tuple[str, Any]) -> dict[str, Any]:
        return dict(entries)

    def parenthesized(self, _: Any, end: Token) -> NoReturn:
        where = self.place(end)
        raise GraphError("parentheses around one item", where=where, remedy="write a tuple as (x,)")
