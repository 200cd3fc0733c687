"""Parse what is said about values: types, sizes and placements."""

from __future__ import annotations

from collections.abc import Mapping

import sympy
from torch.utils._sympy import functions

from compiler.errors import PlacementError
from compiler.ir.placement import Placement, Placements, Shard, parse_placement, placements_on
from compiler.ir.text import spelling
from compiler.ir.text.literals import Literals
from compiler.ir.text.types import (
    ConstantType,
    Size,
    SymbolType,
    TensorType,
    TupleType,
    ValueType,
    tensors,
)


class Declarations(Literals):
    """Reads types, sizes and placements; ``symbols`` are those that the header declares."""

    symbols: Mapping[str, sympy.Symbol]

    def axis(self) -> str:
        """The name of an axis of the mesh."""
        at = self.scanner.at
        name = self.scanner.name("the name of an axis")
        if name not in self.mesh.axes:
            self.scanner.fail(
                f"unknown axis {name!r}", at=at, found=f"the mesh has {', '.join(self.mesh.axes)}"
            )
        return name

    def type(self) -> ValueType:
        """A type, as in ``bf16[2, s0]@cuda:0``, ``sym(s0)``, ``int(4)``, ``(f32[4], none)``."""
        scanner = self.scanner
        if scanner.accept("("):
            items: list[ValueType] = []
            self.separated(")", lambda: items.append(self.type()))
            return TupleType(tuple(items))
        start = scanner.at
        name = scanner.take("name", "a type")
        if name in spelling.DTYPES:
            shape = self.sizes("the sizes of the tensor in brackets")
            return TensorType(spelling.DTYPES[name], shape, self.device())
        if name in ("sym", "symfloat", "symbool"):
            return SymbolType(name, self.size_in_parentheses() if name == "sym" else None)
        if name == "none":
            return ConstantType(None)
        if name not in ("int", "float", "bool", "str"):
            scanner.fail(
                f"unknown type {name!r}",
                at=start,
                found=f"the element types are {', '.join(spelling.DTYPES)}",
                remedy="write a tensor as f32[4, 8], a number as sym(s0) or int(4)",
            )
        scanner.expect("(")
        at = scanner.at
        item = self.literal()
        scanner.expect(")")
        if type(item).__name__ != name:
            scanner.fail(f"not of type {name}", at=at)
        return ConstantType(item)

    def device(self) -> str:
        """The device behind a tensor's sizes, ``cpu`` where there is none."""
        if self.scanner.kind != "place":
            return "cpu"
        return str(self.parsed_device(self.scanner.take("place", "a device")))

    def sizes(self, what: str) -> tuple[Size, ...]:
        """``[size, …]``; ``what`` names it in the error."""
        if not self.scanner.accept("["):
            self.scanner.expected(what)
        found: list[Size] = []
        self.separated("]", lambda: found.append(self.size()))
        return tuple(found)

    def size_in_parentheses(self) -> Size | None:
        """``(size)``, or None if no parenthesis is next."""
        if not self.scanner.accept("("):
            return None
        found = self.size()
        self.scanner.expect(")")
        return found

    def size(self) -> Size:
        """A sum, as an int where no symbol is left."""
        at = self.scanner.at
        try:
            found = self.sum()
        except (TypeError, ValueError, ArithmeticError, AssertionError) as error:
            self.scanner.fail("not a size", at=at, found=str(error))
        if found.is_number and not found.is_Integer:
            self.scanner.fail("not a size", at=at, found=str(found))
        return int(found) if found.is_Integer else found

    def sum(self) -> sympy.Expr:
        """Products with ``+`` and ``-`` between them."""
        total = self.product()
        while self.scanner.text in ("+", "-"):
            minus = self.scanner.accept("-") or not self.scanner.accept("+")
            term = self.product()
            total = total - term if minus else total + term
        return total

    def product(self) -> sympy.Expr:
        """Factors with ``*``, ``/`` and ``floordiv`` between them."""
        found = self.factor()
        while self.scanner.text in ("*", "/", "floordiv"):
            operator = self.scanner.text
            self.scanner.at += 1
            right = self.factor()
            if operator == "*":
                found = found * right
            else:
                found = found / right if operator == "/" else functions.FloorDiv(found, right)
        return found

    def factor(self) -> sympy.Expr:
        """``-x``, ``x ** y`` or an atom."""
        if self.scanner.accept("-"):
            return -self.factor()
        base = self.atom()
        return base ** self.factor() if self.scanner.accept("**") else base

    def atom(self) -> sympy.Expr:
        """An integer, a symbol, a call as in ``Max(1, s0)``, or a sum in parentheses."""
        scanner = self.scanner
        if scanner.accept("("):
            found = self.sum()
            scanner.expect(")")
            return found
        if scanner.kind == "number":
            return sympy.Integer(scanner.integer("an integer"))
        name = scanner.take("name", "a size")
        if scanner.accept("("):
            at = scanner.at - 2
            operands: list[sympy.Expr] = []
            self.separated(")", lambda: operands.append(self.sum()))
            function = getattr(functions, name, None)
            if not isinstance(function, type) or not issubclass(function, sympy.Expr):
                scanner.fail(f"unknown function {name!r} in a size", at=at)
            return function(*operands)
        if name not in self.symbols:
            scanner.fail(
                f"symbol {name!r} is not declared",
                at=scanner.at - 1,
                remedy=f"add 'sym {name} in [2, inf]' before the function",
            )
        return self.symbols[name]

    def placements(self, held: ValueType) -> Placements | None:
        """``{tp: R, …}`` for a value of type ``held``, None if there are no braces."""
        found: dict[str, Placement] = {}

        def entry() -> None:
            axis = self.axis()
            if axis in found:
                self.scanner.fail(f"axis {axis!r} appears twice", at=self.scanner.at - 1)
            self.scanner.expect(":")
            found[axis] = self.placement(held)

        if not self.scanner.accept("{"):
            return None
        self.separated("}", entry)
        return placements_on(self.mesh, found, "")

    def placement(self, held: ValueType) -> Placement:
        """``R``, ``V``, ``P``, ``P(op)`` or ``S(dim)``, of a value of type ``held``."""
        scanner, at = self.scanner, self.scanner.at
        text = scanner.take("name", "a placement")
        if scanner.accept("("):
            text += f"({scanner.text})"
            scanner.at += 1
            scanner.expect(")")
        try:
            found = parse_placement(text)
        except PlacementError as error:
            scanner.fail(f"unknown placement {text!r}", at=at, remedy=error.remedy)
        dims = [len(tensor.shape) for tensor in tensors(held)]
        if isinstance(found, Shard) and any(found.dim >= dim for dim in dims):
            scanner.fail(f"placement {text} of a tensor of {min(dims)} dimensions", at=at)
        return found
