"""Print single values: the lines of a graph, their numbers, and what messages show of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from compiler.errors import GraphError
from compiler.ir import access
from compiler.ir.collectives import OPS, WAIT
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Placements
from compiler.ir.text import spelling
from compiler.ir.text.types import held_by, sizes_text, strides_of, type_of


@dataclass(frozen=True)
class Line:
    """One printed value: its number, the node that holds it, and the collective it waits for."""

    number: int
    node: fx.Node
    start: fx.Node | None = None

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        """The nodes that the line stands for, in program order."""
        return (self.node,) if self.start is None else (self.start, self.node)

    @property
    def layer(self) -> str:
        """Path of the module that the value comes from, empty where it is not known."""
        return next(filter(None, map(access.layer_path, self.nodes)), "")

    @property
    def source(self) -> str:
        """``model.py:88``, empty where it is not known."""
        return next(filter(None, map(access.source_line, self.nodes)), "")


def lines(graph: fx.Graph) -> Iterator[Line]:
    """The printed values of ``graph``: its inputs, then the others in program order.

    A collective whose only user is the wait directly after it makes one line with that wait.
    """
    inputs = access.node_of(graph, "placeholder")
    body = (node for node in graph.nodes if node.op not in ("placeholder", "output"))
    start, number = None, 0
    for node in (*inputs, *body):
        if _waited_at_once(node):
            start = node
            continue
        yield Line(number, node, start)
        start, number = None, number + 1


def _waited_at_once(node: fx.Node) -> bool:
    return (
        node.target in OPS
        and list(node.users) == [node.next]
        and node.next.target is WAIT
        and _group(node) is not None
    )


def _group(node: fx.Node) -> str | None:
    """The group name of the collective that ``node`` starts, None where it is no string."""
    found = access.arguments(node).get("group_name")
    return found if isinstance(found, str) else None


def numbers(graph: fx.Graph) -> dict[fx.Node, int]:
    """The number of every value in the printed graph.

    A collective and the wait directly after it share one; the output node has none.
    """
    return {node: line.number for line in lines(graph) for node in line.nodes}


def value_count(graph: fx.Graph) -> int:
    """How many values the printed graph has."""
    return sum(1 for _ in lines(graph))


class Printer:
    """Prints values of one graph.

    Args:
        graph: where the values are numbered.
        mesh: tells axes from other groups; without one, groups print by name.
        placements: of the values whose placement is to be printed.
        strict: raise GraphError for what has no text form; else print ``?`` and its Python text.
    """

    def __init__(
        self,
        graph: fx.Graph,
        mesh: Mesh | None,
        placements: Mapping[fx.Node, Placements],
        strict: bool = True,
    ) -> None:
        self.numbers = numbers(graph)
        self.mesh, self.placements, self.strict = mesh, placements, strict
        self.printed: fx.Node = next(iter(graph.nodes))

    def line(self, line: Line) -> str:
        """``%5: bf16[2, 4096] {tp: R} = aten.add.Tensor(%3, %4)``."""
        self.printed = line.node
        if line.node.op == "placeholder":
            return self.declaration(line)
        return f"%{line.number}: {self.held(line)} = {self.operation(line)}"

    def declaration(self, line: Line) -> str:
        """``%0 "x": bf16[2, 4096] {tp: R}``, of an input."""
        name = spelling.quoted(str(line.node.target))
        return f"%{line.number} {name}: {self.held(line)}"

    def held(self, line: Line) -> str:
        """Type, strides of inputs that are not contiguous, and placement where known."""
        node = line.node
        found = held_by(node) if self.strict else node.meta.get("val", ...)
        try:
            text = str(type_of(found))
        except GraphError as error:
            text = self.refused(error.what, error.found, error.remedy, otherwise="?")
        if node.op in ("placeholder", "get_attr") and isinstance(found, torch.Tensor):
            strides = strides_of(found)
            text += "" if strides is None else f" strides {sizes_text(strides)}"
        placements = self.placements_of(line)
        return text if placements is None else f"{text} {{{self.placed(placements)}}}"

    def placements_of(self, line: Line) -> Placements | None:
        """Placement of a line's value, None where it is not known."""
        found = self.placements.get(line.node)
        return self.placements.get(line.start) if found is None and line.start else found

    def placed(self, placements: Placements) -> str:
        """``tp: R, ep: S(0)``."""
        axes = [spelling.name_text(a) for a in self.mesh.axes] if self.mesh else []
        if len(axes) != len(placements):
            return ", ".join(map(str, placements))
        return ", ".join(f"{axis}: {p}" for axis, p in zip(axes, placements, strict=True))

    def operation(self, line: Line) -> str:
        """What stands behind the ``=`` of a value."""
        node = line.node
        if node.op == "get_attr":
            return f"attr {spelling.quoted(str(node.target))}"
        if line.start is not None:
            return self.collective(line.start, spelling.COMM_NAMES[line.start.target])
        if node.target in OPS and _group(node) is not None:
            return self.collective(node, f"{spelling.COMM_NAMES[node.target]}_start")
        args, kwargs = access.call(node)
        index = access.projection(node)
        if index is not None:
            return f"{self.literal(args[0])}[{index}]"
        named = [f"{name} = {self.literal(x)}" for name, x in kwargs.items()]
        return f"{self.op(node)}({', '.join([*map(self.literal, args), *named])})"

    def op(self, node: fx.Node) -> str:
        """The name of the node's op."""
        found = spelling.op_name(node.target) if node.op == "call_function" else None
        if found is not None:
            return found
        return self.refused(
            "an op has no text form: it is no ATen or Python op",
            f"{node.op} of {node.target}",
            "functionalize and flatten the graph: export it and run_decompositions({})",
            otherwise=f"?{node.target}",
        )

    def refused(self, what: str, found: str, remedy: str, otherwise: str) -> str:
        """``otherwise``, or GraphError about the line being printed where the printer is strict."""
        if not self.strict:
            return otherwise
        where = describe(self.printed, mesh=self.mesh)
        if source := access.source_line(self.printed):
            where += f", from {source}"
        raise GraphError(what, where=where, found=found, remedy=remedy)

    def collective(self, start: fx.Node, name: str) -> str:
        """``comm.all_reduce(%4) {axis = tp, op = sum}``."""
        found = access.written_arguments(start)
        operand, group = found.pop("input"), found.pop("group_name")
        attributes = {"group": spelling.quoted(group)}
        if self.mesh is not None and group in self.mesh.axes:
            attributes = {"axis": spelling.name_text(group)}
        known = self.mesh.groups.get(group) if self.mesh is not None else None
        for argument, item in found.items():
            implied = argument == "group_size" and known is not None and item == known.axis_size
            if not implied:
                text = spelling.name_text(item) if isinstance(item, str) else self.literal(item)
                attributes[spelling.ATTRIBUTES[argument]] = text
        listed = ", ".join(f"{key} = {text}" for key, text in attributes.items())
        return f"{name}({self.literal(operand)}) {{{listed}}}"

    def literal(self, item: Any) -> str:
        """An argument: a value, a constant, or a structure of those."""
        match item:
            case fx.Node():
                return f"%{self.numbers[item]}" if item in self.numbers else f"?{item.name}"
            case None | bool():
                return str(item).lower()
            case access.RankInt() | access.RankFloat():
                return f"rank({', '.join(map(self.literal, item.values))})"
            case int():
                return str(int(item))
            case float():
                return spelling.float_text(item)
            case str():
                return spelling.quoted(item)
            case torch.device():
                return f"@{item}"
        return self.structure(item)

    def structure(self, item: Any) -> str:
        """A slice, list, tuple, dict, or a constant with a name."""
        match item:
            case slice():
                return f"slice({self.listed((item.start, item.stop, item.step))})"
            case list():
                return f"[{self.listed(item)}]"
            case tuple():
                return f"({self.listed(item)}{',' * (len(item) == 1)})"
            case dict():
                pairs = (f"{spelling.quoted(k)}: {self.literal(x)}" for k, x in item.items())
                return f"{{{', '.join(pairs)}}}"
            case torch.dtype() | torch.layout() | torch.memory_format():
                if item in spelling.CONSTANTS:
                    return spelling.CONSTANTS[item]
        return self.refused(
            "an argument has no text form",
            f"{item!r} of type {type(item).__name__}",
            "pass values, numbers, strings, lists, dtypes, devices or layouts; a size that "
            "depends on a symbol comes from a value of aten.sym_size.int",
            otherwise=f"?{item}",
        )

    def listed(self, items: Iterable[Any]) -> str:
        """``items`` between commas."""
        return ", ".join(map(self.literal, items))

    def returned(self, node: fx.Node) -> str:
        """``return %8, (%9, %6), none``."""
        self.printed = node
        ((item,), _) = access.call(node)
        if isinstance(item, tuple) and len(item) > 1:
            return f"return {self.listed(item)}"
        return f"return {self.literal(item)}"


def printer_of(graph: SpmdGraph, facts: Mapping[fx.Node, Placements] | None) -> Printer:
    """A printer that knows the placements of the graph's inputs, and ``facts``."""
    placements = dict(facts or {})
    for node in graph.graph.nodes:
        if node.op in ("placeholder", "get_attr") and str(node.target) in graph.inputs:
            placements[node] = graph.inputs[str(node.target)]
    return Printer(graph.graph, graph.mesh, placements)


def describe(node: fx.Node, *, mesh: Mesh | None = None) -> str:
    """The one line of ``node``, for messages; what has no text form prints with a ``?``."""
    printer = Printer(node.graph, mesh, {}, strict=False)
    if node.op == "output":
        return printer.returned(node)
    return next(printer.line(line) for line in lines(node.graph) if node in line.nodes)
