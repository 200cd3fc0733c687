"""Parse the text form of SPMD graphs, by recursive descent over the grammar of the package."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import sympy
import torch
from torch import fx
from torch.utils._sympy import functions

from compiler.errors import GraphError, MeshError, PlacementError
from compiler.ir import access
from compiler.ir.collectives import WAIT
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Placement, Placements, Shard, parse_placement, placements_on
from compiler.ir.text import spelling
from compiler.ir.text.build import Builder, Gives, Range, Refused, is_unbacked
from compiler.ir.text.scan import Scanner
from compiler.ir.text.types import (
    ConstantType,
    Size,
    SymbolType,
    TensorType,
    TupleType,
    ValueType,
    tensors,
)


@dataclass(frozen=True)
class Parsed:
    """A graph, and the placements its text states for values that are no inputs."""

    graph: SpmdGraph
    facts: dict[fx.Node, Placements]


def parse_graph(text: str, *, rank: int = 0, file: str = "") -> SpmdGraph:
    """The graph that ``text`` prints.

    Parameters are tensors on the meta device: load real ones with ``load_state_dict(...,
    assign=True)``. No memory is allocated.

    Args:
        text: as ``print_graph`` writes it.
        rank: whose entry a rank constant takes.
        file: named in errors.

    Raises:
        GraphError: a text that is no graph, or a type that is not what the op gives.
        CommPlanError: a mesh, group or placement that is not well-formed.
    """
    return parse(text, rank=rank, file=file).graph


def parse(text: str, *, rank: int = 0, file: str = "") -> Parsed:
    """Like ``parse_graph``, with the placements that the text states beside values."""
    return _Parser(Scanner(text, file), rank).parse()


class _Parser:
    def __init__(self, scanner: Scanner, rank: int) -> None:
        self.scanner, self.rank = scanner, rank
        self.values: dict[str, fx.Node] = {}
        self.facts: dict[fx.Node, Placements] = {}

    def parse(self) -> Parsed:
        mesh = self.mesh()
        if not 0 <= self.rank < mesh.size:
            raise GraphError(
                "rank= is no rank of the graph's mesh",
                found=f"{self.rank}, the mesh has {mesh.size} ranks",
                remedy=f"a rank in 0 .. {mesh.size - 1}",
            )
        self.builder = Builder(mesh, self.ranges())
        scanner = self.scanner
        scanner.expect("func")
        if not scanner.text.startswith("@"):
            scanner.expected("@ and the function's name")
        scanner.take("place", "@ and the function's name")
        scanner.expect("(")
        self.separated(")", self.input)
        scanner.expect("{")
        while scanner.kind == "value":
            self.line()
        graph = self.builder.finish(self.returned())
        scanner.expect("}")
        scanner.take("end", "the end of the text")
        return Parsed(graph, self.facts)

    def separated(self, close: str, item: Callable[[], None]) -> None:
        """Items between commas up to ``close``; a comma may follow the last one."""
        while not self.scanner.accept(close):
            item()
            if not self.scanner.accept(","):
                self.scanner.expect(close)
                return

    # -- header

    def mesh(self) -> Mesh:
        scanner = self.scanner
        start = scanner.at
        scanner.expect("mesh")
        axes = self.axes(sized=True)
        groups: dict[str, Any] = {}
        try:
            plain = Mesh(axes)
            while scanner.is_next("group"):
                start = scanner.at
                scanner.at += 1
                name = scanner.string("a group name in quotes")
                scanner.expect("=")
                groups[name] = self.group(plain)
                plain = Mesh(axes, groups)
        except MeshError as error:
            scanner.fail(error.what, at=start, found=error.found, remedy=error.remedy)
        return plain

    def axes(self, sized: bool) -> dict[str, int]:
        found: dict[str, int] = {}

        def axis() -> None:
            name = self.scanner.name("the name of an axis")
            if name in found:
                self.scanner.fail(f"axis {name!r} appears twice", at=self.scanner.at - 1)
            if sized:
                self.scanner.expect("=")
            found[name] = self.scanner.integer("the size of the axis") if sized else 0

        self.scanner.expect("<")
        self.separated(">", axis)
        return found

    def group(self, mesh: Mesh) -> Any:
        if not self.scanner.is_next("<"):
            if not self.scanner.is_next("["):
                self.scanner.expected("replica groups: <axis, …> or [[rank, …], …]")
            return self.literal()
        start = self.scanner.at
        names = self.axes(sized=False)
        if unknown := set(names) - set(mesh.axes):
            self.no_axis(min(unknown), mesh, start)
        return mesh.along(*names).ranks

    def no_axis(self, name: str, mesh: Mesh, at: int) -> NoReturn:
        self.scanner.fail(
            f"unknown axis {name!r}", at=at, found=f"the mesh has {', '.join(mesh.axes)}"
        )

    def ranges(self) -> dict[str, Range]:
        scanner = self.scanner
        found: dict[str, Range] = {}
        while scanner.accept("sym"):
            start = scanner.at
            name = scanner.take("name", "the name of a symbol")
            if name in found:
                scanner.fail(f"symbol {name!r} is declared twice", at=start)
            scanner.expect("in")
            scanner.expect("[")
            low = self.bound()
            scanner.expect(",")
            high = self.bound()
            scanner.expect("]")
            least = -math.inf if is_unbacked(name) else 0
            if not least <= low <= high or low == math.inf:
                scanner.fail(
                    f"the range of {name!r} holds no size",
                    at=start,
                    remedy="give least and greatest value, [2, inf] for any size",
                )
            found[name] = (low, high)
        return found

    def bound(self) -> float:
        sign = -1 if self.scanner.accept("-") else 1
        if self.scanner.accept("inf"):
            return sign * math.inf
        return sign * self.scanner.integer("an integer or inf")

    # -- types and placements

    def type(self) -> ValueType:
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
        if self.scanner.kind != "place":
            return "cpu"
        return str(self.parsed_device(self.scanner.take("place", "a device")))

    def parsed_device(self, token: str) -> torch.device:
        try:
            return torch.device(token[1:])
        except RuntimeError:
            self.scanner.fail(f"unknown device {token[1:]!r}", at=self.scanner.at - 1)

    def sizes(self, what: str) -> tuple[Size, ...]:
        if not self.scanner.accept("["):
            self.scanner.expected(what)
        found: list[Size] = []
        self.separated("]", lambda: found.append(self.size()))
        return tuple(found)

    def size_in_parentheses(self) -> Size | None:
        if not self.scanner.accept("("):
            return None
        found = self.size()
        self.scanner.expect(")")
        return found

    def size(self) -> Size:
        """A sum, as an int where no symbol is left."""
        found = self.sum()
        return int(found) if found.is_Integer else found

    def sum(self) -> sympy.Expr:
        total = self.product()
        while self.scanner.text in ("+", "-"):
            minus = self.scanner.accept("-") or not self.scanner.accept("+")
            term = self.product()
            total = total - term if minus else total + term
        return total

    def product(self) -> sympy.Expr:
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
        if self.scanner.accept("-"):
            return -self.factor()
        base = self.atom()
        return base ** self.factor() if self.scanner.accept("**") else base

    def atom(self) -> sympy.Expr:
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
        if name not in self.builder.symbols:
            scanner.fail(
                f"symbol {name!r} is not declared",
                at=scanner.at - 1,
                remedy=f"add 'sym {name} in [2, inf]' before the function",
            )
        return self.builder.symbols[name]

    def placements(self, held: ValueType) -> Placements | None:
        """``{tp: R, …}`` for a value of type ``held``, None if there are no braces."""
        mesh = self.builder.mesh
        found: dict[str, Placement] = {}

        def entry() -> None:
            at = self.scanner.at
            axis = self.scanner.name("the name of an axis")
            if axis not in mesh.axes:
                self.no_axis(axis, mesh, at)
            self.scanner.expect(":")
            found[axis] = self.placement(held)

        if not self.scanner.accept("{"):
            return None
        self.separated("}", entry)
        return placements_on(mesh, found, "")

    def placement(self, held: ValueType) -> Placement:
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

    # -- values

    def input(self) -> None:
        at = self.scanner.at
        value = self.fresh_value('an input: %0 "name": type')
        name = self.scanner.string("the name of the input in quotes")
        if not name.isidentifier() or name in self.builder.inputs:
            self.scanner.fail(
                f"{name!r} cannot name an input",
                at=self.scanner.at - 1,
                remedy="input names are Python identifiers and differ",
            )
        self.scanner.expect(":")
        held, strides, placements = self.held()
        node = self.built(at, lambda: self.builder.placeholder(name, held, strides))
        self.values[value] = node
        self.builder.inputs[name] = placements or placements_on(self.builder.mesh, {}, name)

    def fresh_value(self, what: str) -> str:
        value = self.scanner.take("value", what)
        if value in self.values:
            self.scanner.fail(f"value {value} is defined twice", at=self.scanner.at - 1)
        return value

    def held(self) -> tuple[ValueType, tuple[Size, ...] | None, Placements | None]:
        held = self.type()
        strides = None
        if self.scanner.accept("strides"):
            at = self.scanner.at
            strides = self.sizes("strides in brackets")
            if not isinstance(held, TensorType) or len(strides) != len(held.shape):
                self.scanner.fail(f"{len(strides)} strides of {held}", at=at)
        return held, strides, self.placements(held)

    def built(self, at: int, build: Callable[[], fx.Node]) -> fx.Node:
        """What ``build`` gives; its refusals are errors about token ``at``."""
        try:
            return build()
        except Refused as refused:
            self.scanner.fail(str(refused), at=at)

    def line(self) -> None:
        scanner, start = self.scanner, self.scanner.at
        value = self.fresh_value("a value")
        scanner.expect(":")
        held, strides, placements = self.held()
        scanner.expect("=")
        at = scanner.at
        if scanner.accept("attr"):
            node = self.attribute(start, held, strides, placements)
        elif strides is not None:
            scanner.fail("strides of a value that is no input or attribute", at=start)
        else:
            try:
                node = self.operation(held, f"v{value[1:]}")
            except Gives as gives:
                op = "the value" if scanner.kinds[at] == "value" else scanner.texts[at]
                scanner.fail(f"{value} is printed as {held}, {op} gives {gives}", at=at)
            except Refused as refused:
                scanner.fail(f"{scanner.texts[at]} refuses its operands", at=at, found=str(refused))
            if placements is not None:
                self.facts[node] = placements
        self.values[value] = node

    def attribute(
        self,
        start: int,
        held: ValueType,
        strides: tuple[Size, ...] | None,
        placements: Placements | None,
    ) -> fx.Node:
        target = self.scanner.string("the name of the attribute in quotes")
        if not all(part.isidentifier() or part.isdecimal() for part in target.split(".")):
            self.scanner.fail(f"{target!r} cannot name an attribute", at=self.scanner.at - 1)
        node = self.built(start, lambda: self.builder.attribute(target, held, strides))
        if placements is not None:
            if self.builder.inputs.setdefault(target, placements) != placements:
                self.scanner.fail(f"attribute {target!r} has two placements", at=start)
        return node

    def operation(self, held: ValueType, name: str) -> fx.Node:
        scanner = self.scanner
        if scanner.kind == "value":
            item = self.value()
            scanner.expect("[")
            index = self.literal()
            scanner.expect("]")
            return self.builder.call(spelling.PYTHON["getitem"], (item, index), {}, held, name)
        at = scanner.at
        op = scanner.take("name", "an op")
        if op in spelling.COMM or op in spelling.COMM_STARTS:
            return self.collective(op, held, name)
        if "." not in op:
            scanner.fail(f"unknown op {op!r}", at=at, remedy="write namespace.op")
        try:
            target = spelling.find_op(op)
        except LookupError as error:
            scanner.fail(
                f"unknown op {op!r}",
                at=at,
                found=str(error.args[0]),
                remedy="import the library that registers the op before parsing",
            )
        args: list[Any] = []
        kwargs: dict[str, Any] = {}

        def argument() -> None:
            if scanner.kind == "name" and scanner.is_next("=", ahead=1):
                key = scanner.take("name", "an argument")
                scanner.expect("=")
                kwargs[key] = self.literal()
            elif kwargs:
                scanner.fail("a positional argument follows a named one")
            else:
                args.append(self.literal())

        scanner.expect("(")
        self.separated(")", argument)
        return self.builder.call(target, tuple(args), kwargs, held, name)

    def collective(self, op: str, held: ValueType, name: str) -> fx.Node:
        scanner = self.scanner
        scanner.expect("(")
        operand = self.value()
        scanner.expect(")")
        at = scanner.at
        attributes: dict[str, Any] = {}

        def attribute() -> None:
            key = scanner.take("name", "an attribute")
            scanner.expect("=")
            if key in ("axis", "group"):
                attributes[key] = self.group_name(key)
            else:
                attributes[key] = scanner.name("a reduction") if key == "op" else self.literal()

        scanner.expect("{")
        self.separated("}", attribute)
        starts = op in spelling.COMM_STARTS
        target = spelling.COMM_STARTS[op] if starts else spelling.COMM[op]
        args = [operand, *self.collective_arguments(op, target, attributes, at)]
        started = self.builder.call(
            target, tuple(args), {}, held, name if starts else f"{name}_start"
        )
        if starts:
            return started
        return self.builder.call(WAIT, (started,), {}, held, name)

    def group_name(self, key: str) -> str:
        mesh, at = self.builder.mesh, self.scanner.at
        name = self.scanner.name(f"the name of the {key}")
        if key == "axis" and name not in mesh.axes:
            self.no_axis(name, mesh, at)
        if name not in mesh.groups:
            self.scanner.fail(
                f"unknown group {name!r}",
                at=at,
                found=f"the mesh has {', '.join(mesh.groups)}",
                remedy=f"add 'group {spelling.quoted(name)} = [[rank, …], …]' after the mesh",
            )
        return name

    def collective_arguments(
        self, op: str, target: Any, attributes: dict[str, Any], at: int
    ) -> list[Any]:
        """The arguments after the operand, in the order of the schema."""
        groups = [attributes.pop(key) for key in ("axis", "group") if key in attributes]
        if len(groups) != 1:
            self.scanner.fail(f"{op} needs one axis or one group", at=at)
        implied = {
            "group_size": self.builder.mesh.group(groups[0]).axis_size,
            "output_splits": None,
            "input_splits": None,
        }
        found: list[Any] = []
        for argument in target._schema.arguments[1:]:
            if argument.name == "group_name":
                found.append(groups[0])
                continue
            key = spelling.ATTRIBUTES[argument.name]
            if key not in attributes and key not in implied:
                self.scanner.fail(f"{op} needs the attribute {key}", at=at)
            found.append(attributes.pop(key, implied.get(key)))
        if attributes:
            self.scanner.fail(f"{op} has no attribute {', '.join(attributes)}", at=at)
        return found

    def value(self) -> fx.Node:
        name = self.scanner.take("value", "a value")
        if name not in self.values:
            self.scanner.fail(f"unknown value {name}", at=self.scanner.at - 1)
        return self.values[name]

    def returned(self) -> Any:
        if not self.scanner.accept("return"):
            self.scanner.expected("a value or 'return'")
        first = self.literal()
        if not self.scanner.is_next(","):
            return first
        found = [first]
        while self.scanner.accept(","):
            found.append(self.literal())
        return tuple(found)

    # -- arguments

    def literal(self) -> Any:
        """A value, a constant, or a structure of those."""
        scanner = self.scanner
        match scanner.kind:
            case "value":
                return self.value()
            case "string":
                return scanner.string("a string")
            case "place":
                return self.parsed_device(scanner.take("place", "a device"))
            case "number":
                return _number(scanner.take("number", "a number"))
        if scanner.accept("-"):
            return -self.number()
        if scanner.text in ("[", "(", "{"):
            return self.structure()
        return self.word()

    def number(self) -> int | float:
        if self.scanner.accept("inf"):
            return math.inf
        return _number(self.scanner.take("number", "a number"))

    def structure(self) -> Any:
        scanner, items = self.scanner, []
        if scanner.accept("["):
            self.separated("]", lambda: items.append(self.literal()))
            return items
        if scanner.accept("{"):

            def entry() -> None:
                key = scanner.string("a key in quotes")
                scanner.expect(":")
                items.append((key, self.literal()))

            self.separated("}", entry)
            return dict(items)
        scanner.expect("(")
        self.separated(")", lambda: items.append(self.literal()))
        if len(items) == 1 and scanner.texts[scanner.at - 2] != ",":
            scanner.fail(
                "parentheses around one item", at=scanner.at - 1, remedy="write a tuple as (x,)"
            )
        return tuple(items)

    def word(self) -> Any:
        scanner, at = self.scanner, self.scanner.at
        if scanner.kind != "name" or scanner.text not in (*spelling.WORDS, "slice", "rank"):
            scanner.expected("a value or a constant")
        name = scanner.take("name", "a constant")
        if name in spelling.WORDS:
            return spelling.WORDS[name]
        items: list[Any] = []
        scanner.expect("(")
        self.separated(")", lambda: items.append(self.literal()))
        if name == "slice":
            if len(items) != 3:
                scanner.fail("a slice has start, stop and step", at=at)
            return slice(*items)
        return self.rank_constant(items, at)

    def rank_constant(self, items: list[Any], at: int) -> access.RankInt | access.RankFloat:
        ranks = self.builder.mesh.size
        if len(items) != ranks or any(type(x) not in (int, float) for x in items):
            self.scanner.fail(
                "a rank constant has one number per rank",
                at=at,
                found=f"{len(items)} items for {ranks} ranks",
            )
        if all(type(x) is int for x in items):
            return access.RankInt(items[self.rank], tuple(items))
        return access.RankFloat(items[self.rank], tuple(map(float, items)))


def _number(text: str) -> int | float:
    return int(text) if text.isdecimal() else float(text)
