"""Parse the text form of SPMD graphs, by recursive descent over the grammar of the package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from keyword import iskeyword
from typing import Any

import torch
from torch import fx

from compiler.errors import GraphError
from compiler.ir.collectives import WAIT
from compiler.ir.graph import SpmdGraph
from compiler.ir.placement import REDUCTIONS, Placements
from compiler.ir.text import spelling
from compiler.ir.text.graph_builder import Builder, Gives, Refused
from compiler.ir.text.header import Header
from compiler.ir.text.scan import Scanner
from compiler.ir.text.types import Held, TensorType


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


class _Parser(Header):
    """Reads a mesh, symbols and a function, and builds the graph while reading."""

    def parse(self) -> Parsed:
        self.mesh = self.parsed_mesh()
        if not 0 <= self.rank < self.mesh.size:
            raise GraphError(
                "rank= is no rank of the graph's mesh",
                found=f"{self.rank}, the mesh has {self.mesh.size} ranks",
                remedy=f"a rank in 0 .. {self.mesh.size - 1}",
            )
        self.builder = Builder(self.mesh, self.ranges())
        self.symbols = self.builder.symbols
        self.facts: dict[fx.Node, Placements] = {}
        scanner = self.scanner
        scanner.expect("func")
        scanner.take("place", "@ and the name of the function")
        scanner.expect("(")
        self.separated(")", self.input)
        scanner.expect("{")
        while scanner.kind == "value":
            self.line()
        at, returned = scanner.at, self.returned()
        scanner.expect("}")
        scanner.take("end", "the end of the text")
        try:
            return Parsed(self.builder.finish(returned), self.facts)
        except Refused as refused:
            scanner.fail(str(refused), at=at)

    def input(self) -> None:
        start = self.scanner.at
        value = self.fresh_value('an input, as in %0 "x": f32[4]')
        name = self.scanner.string("the name of the input in quotes")
        if not name.isidentifier() or iskeyword(name) or name in self.builder.inputs:
            self.scanner.fail(
                f"{name!r} cannot name an input",
                at=self.scanner.at - 1,
                remedy="names of inputs are Python identifiers, each different",
            )
        self.scanner.expect(":")
        held = self.held()
        self.values[value] = self.built(start, lambda: self.builder.placeholder(name, held))

    def fresh_value(self, what: str) -> str:
        value = self.scanner.take("value", what)
        if value in self.values:
            self.scanner.fail(f"value {value} is defined twice", at=self.scanner.at - 1)
        return value

    def held(self) -> Held:
        found = self.type()
        strides = None
        if self.scanner.accept("strides"):
            at = self.scanner.at
            strides = self.sizes("strides in brackets")
            if not isinstance(found, TensorType) or len(strides) != len(found.shape):
                self.scanner.fail(f"{len(strides)} strides of {found}", at=at)
            if any(isinstance(stride, int) and stride < 0 for stride in strides):
                self.scanner.fail("a negative stride", at=at)
        return Held(found, strides, self.placements(found))

    def built(self, at: int, build: Callable[[], fx.Node]) -> fx.Node:
        """What ``build`` gives; its refusals are errors about token ``at``."""
        try:
            return build()
        except Refused as refused:
            self.scanner.fail(str(refused), at=at)

    def line(self) -> None:
        start = self.scanner.at
        value = self.fresh_value("a value")
        self.scanner.expect(":")
        held = self.held()
        self.scanner.expect("=")
        if self.scanner.accept("attr"):
            target = self.scanner.string("the name of the attribute in quotes")
            node = self.built(start, lambda: self.builder.attribute(target, held))
        elif held.strides is not None:
            self.scanner.fail("only inputs and attributes have strides", at=start)
        else:
            node = self.computed(value, held)
        self.values[value] = node

    def computed(self, value: str, held: Held) -> fx.Node:
        at = self.scanner.at
        op = "getitem" if self.scanner.kind == "value" else self.scanner.text
        try:
            node = self.operation(held, f"v{value[1:]}")
        except Gives as gives:
            self.scanner.fail(f"{value} is printed as {held.type}, {op} gives {gives}", at=at)
        except Refused as refused:
            self.scanner.fail(
                f"{op} refuses its operands", at=at, found=str(refused), remedy=_alternative(op)
            )
        if held.placements is not None:
            self.facts[node] = held.placements
        return node

    def operation(self, held: Held, name: str) -> fx.Node:
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
                found=error.args[0],
                remedy=error.args[1],
            )
        args, kwargs = self.arguments()
        return self.builder.call(target, args, kwargs, held, name)

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        scanner, args = self.scanner, list[Any]()
        kwargs: dict[str, Any] = {}

        def argument() -> None:
            if scanner.kind == "name" and scanner.is_next("=", ahead=1):
                key = self.distinct("argument", scanner.text, kwargs)
                scanner.expect("=")
                kwargs[key] = self.literal()
            elif kwargs:
                scanner.fail("a positional argument follows a named one")
            else:
                args.append(self.literal())

        scanner.expect("(")
        self.separated(")", argument)
        return tuple(args), kwargs

    def collective(self, op: str, held: Held, name: str) -> fx.Node:
        scanner = self.scanner
        scanner.expect("(")
        operand = self.value()
        scanner.expect(")")
        at = scanner.at
        attributes: dict[str, Any] = {}

        def attribute() -> None:
            if scanner.kind != "name":
                scanner.expected("an attribute")
            key = self.distinct("attribute", scanner.text, attributes)
            scanner.expect("=")
            readers: dict[str, Callable[[], Any]] = {
                "axis": self.axis,
                "group": self.group_name,
                "op": self.reduction,
            }
            attributes[key] = readers.get(key, self.literal)()

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

    def reduction(self) -> str:
        at = self.scanner.at
        op = self.scanner.name("a reduction")
        if op not in REDUCTIONS:
            known = ", ".join(REDUCTIONS)
            self.scanner.fail(f"unknown reduction {op!r}", at=at, remedy=f"one of {known}")
        return op

    def group_name(self) -> str:
        at = self.scanner.at
        name = self.scanner.string("the name of the group in quotes")
        if name not in self.mesh.groups:
            self.scanner.fail(
                f"unknown group {name!r}",
                at=at,
                found=f"the mesh has {', '.join(self.mesh.groups)}",
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
        found: list[Any] = []
        for argument in target._schema.arguments[1:]:
            if argument.name == "group_name":
                found.append(groups[0])
                continue
            key = spelling.ATTRIBUTES[argument.name]
            if key == "group_size":
                attributes.setdefault(key, self.mesh.group(groups[0]).axis_size)
            if key not in attributes:
                self.scanner.fail(f"{op} needs the attribute {key}", at=at)
            found.append(attributes.pop(key))
        if attributes:
            self.scanner.fail(f"{op} has no attribute {', '.join(attributes)}", at=at)
        return found

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


def _alternative(op: str) -> str:
    """What to write where ``op`` is the overload for numbers, as in ``aten.add``."""
    namespace, _, name = op.partition(".")
    packet = getattr(getattr(torch.ops, namespace), name, None) if "." not in name else None
    return f"the overload for tensors is {op}.Tensor" if hasattr(packet, "Tensor") else ""
