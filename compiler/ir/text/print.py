"""Print SPMD graphs, and single values for messages."""

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
from compiler.ir.text.origins import origin
from compiler.ir.text.spelling import result_of, sizes_text, strides_of, symbols, type_of

WIDTH = 100
"""Columns beyond which the inputs of a function go on lines of their own."""


@dataclass(frozen=True)
class Line:
    """One printed value: its number, the node that holds it, and the collective it waits for."""

    number: int
    node: fx.Node
    start: fx.Node | None = None

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        """Return the nodes that the line stands for, in program order."""
        return (self.node,) if self.start is None else (self.start, self.node)

    @property
    def layer(self) -> str:
        """Return the path of the module that the value comes from, empty where it is not known."""
        return next(filter(None, map(access.layer_path, self.nodes)), "")

    @property
    def source(self) -> str:
        """Return ``model.py:88``, empty where it is not known."""
        return next(filter(None, map(access.source_line, self.nodes)), "")


def lines(graph: fx.Graph) -> Iterator[Line]:
    """Yield the printed values of ``graph``: its inputs, then the others in program order.

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
    """Return the group name of the collective that ``node`` starts, None if not a string."""
    name = access.arguments(node).get("group_name")
    return name if isinstance(name, str) else None


def numbers(graph: fx.Graph) -> dict[fx.Node, int]:
    """Return the number of every value in the printed graph.

    A collective and the wait directly after it share one; the output node has none.
    """
    return {node: line.number for line in lines(graph) for node in line.nodes}


def value_count(graph: fx.Graph) -> int:
    """Count the values of the printed graph."""
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
        self.labels: Mapping[fx.Node, object] = self.numbers
        self.mesh, self.placements, self.strict = mesh, placements, strict
        self.printed: fx.Node = next(iter(graph.nodes))

    def line(self, line: Line) -> str:
        """Return ``%5: bf16[2, 4096] {tp: R} = aten.add.Tensor(%3, %4)``."""
        self.printed = line.node
        if line.node.op == "placeholder":
            return self.declaration(line)
        return f"%{line.number}: {self.declared(line)} = {self.operation(line)}"

    def declaration(self, line: Line) -> str:
        """Return ``%0 "x": bf16[2, 4096] {tp: R}``, of an input."""
        name = spelling.quoted(str(line.node.target))
        return f"%{line.number} {name}: {self.declared(line)}"

    def declared(self, line: Line) -> str:
        """Return type, strides of inputs that are not contiguous, and placement where known."""
        node = line.node
        value = result_of(node) if self.strict else node.meta.get("val", ...)
        try:
            text = str(type_of(value))
        except GraphError as error:
            text = self.refused(error.what, error.found, error.remedy, otherwise="?")
        if node.op in ("placeholder", "get_attr") and isinstance(value, torch.Tensor):
            strides = strides_of(value)
            text += "" if strides is None else f" strides {sizes_text(strides)}"
        placements = self.placements_of(line)
        return text if placements is None else f"{text} {{{self.placed(placements)}}}"

    def placements_of(self, line: Line) -> Placements | None:
        """Return the placement of a line's value, None where it is not known."""
        placements = self.placements.get(line.node)
        return self.placements.get(line.start) if placements is None and line.start else placements

    def placed(self, placements: Placements) -> str:
        """Return ``tp: R, ep: S(0)``."""
        axes = [spelling.name_text(a) for a in self.mesh.axes] if self.mesh else []
        if len(axes) != len(placements):
            return ", ".join(map(str, placements))
        return ", ".join(f"{axis}: {p}" for axis, p in zip(axes, placements, strict=True))

    def operation(self, line: Line) -> str:
        """Return what stands behind the ``=`` of a value."""
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
        """Return the name of the node's op."""
        name = spelling.op_name(node.target) if node.op == "call_function" else None
        if name is not None:
            return name
        return self.refused(
            "an op has no text form: it is not an ATen or Python op",
            f"{node.op} of {node.target}",
            "functionalize and flatten the graph: export it and run_decompositions({})",
            otherwise=f"?{node.target}",
        )

    def refused(self, what: str, found: str, remedy: str, otherwise: str) -> str:
        """Return ``otherwise``; where the printer is strict, raise GraphError about its line."""
        if not self.strict:
            return otherwise
        where = describe(self.printed, mesh=self.mesh)
        if source := access.source_line(self.printed):
            where += f", from {source}"
        raise GraphError(what, where=where, found=found, remedy=remedy)

    def collective(self, start: fx.Node, name: str) -> str:
        """Return ``comm.all_reduce(%4) {axis = tp, op = sum}``."""
        arguments = access.written_arguments(start)
        operand, group = arguments.pop("input"), arguments.pop("group_name")
        attributes = {"group": spelling.quoted(group)}
        if self.mesh is not None and group in self.mesh.axes:
            attributes = {"axis": spelling.name_text(group)}
        groups = self.mesh.groups.get(group) if self.mesh is not None else None
        for argument, item in arguments.items():
            implied = argument == "group_size" and groups and item == groups.axis_size
            if not implied:
                text = spelling.name_text(item) if isinstance(item, str) else self.literal(item)
                attributes[spelling.ATTRIBUTES[argument]] = text
        listed = ", ".join(f"{key} = {text}" for key, text in attributes.items())
        return f"{name}({self.literal(operand)}) {{{listed}}}"

    def literal(self, item: Any) -> str:
        """Return an argument: a value, a constant, or a structure of those."""
        match item:
            case fx.Node():
                return f"%{self.labels[item]}" if item in self.labels else f"?{item.name}"
            case access.RankNumber():
                return f"rank({self.listed(item.values)})"
            case slice():
                return f"slice({self.listed((item.start, item.stop, item.step))})"
            case list():
                return f"[{self.listed(item)}]"
            case tuple():
                return spelling.parenthesized(map(self.literal, item))
            case dict():
                pairs = (f"{spelling.quoted(k)}: {self.literal(x)}" for k, x in item.items())
                return f"{{{', '.join(pairs)}}}"
        text = spelling.constant(item)
        return text or self.refused(
            "an argument has no text form",
            f"{item!r} of type {type(item).__name__}",
            "pass values, numbers, strings, lists, dtypes, devices or layouts; a size that "
            "depends on a symbol comes from a value of aten.sym_size.int",
            otherwise=f"?{item}",
        )

    def listed(self, items: Iterable[Any]) -> str:
        """Return ``items`` between commas."""
        return ", ".join(map(self.literal, items))

    def returned(self, node: fx.Node) -> str:
        """Return ``return %8, (%9, %6), none``."""
        self.printed = node
        ((item,), _) = access.call(node)
        if isinstance(item, tuple) and len(item) > 1:
            return f"return {self.listed(item)}"
        return f"return {self.literal(item)}"


def printer_of(
    graph: SpmdGraph, facts: Mapping[fx.Node, Placements] | None, *, names: bool = False
) -> Printer:
    """Return a printer that knows the placements of the graph's inputs, and ``facts``.

    With ``names``, operands print by name, which copies of a graph share, not by number.
    """
    placements = dict(facts or {})
    for node in graph.graph.nodes:
        if node.op in ("placeholder", "get_attr") and str(node.target) in graph.inputs:
            placements[node] = graph.inputs[str(node.target)]
    printer = Printer(graph.graph, graph.mesh, placements)
    if names:
        printer.labels = {n: line.node.name for line in lines(graph.graph) for n in line.nodes}
    return printer


def describe(node: fx.Node, *, mesh: Mesh | None = None) -> str:
    """Return the one line of ``node``, for messages; what has no text form prints with a ``?``."""
    printer = Printer(node.graph, mesh, {}, strict=False)
    if node.op == "output":
        return printer.returned(node)
    return next(printer.line(line) for line in lines(node.graph) if node in line.nodes)


def print_graph(
    graph: SpmdGraph,
    *,
    facts: Mapping[fx.Node, Placements] | None = None,
    source: bool = False,
    names: bool = False,
    name: str = "main",
) -> str:
    """Return the text of ``graph``, which ``parse_graph`` reads back.

    Args:
        graph: the graph.
        facts: placements to print beside values; those of inputs come from the graph.
        source: whether to add source line and layer as comments.
        names: whether to add names of nodes too; ``parse_graph`` reads all three.
        name: name of the function.

    Raises:
        GraphError: a value, op or argument that has no text form.
    """
    printer = printer_of(graph, facts)
    inputs: list[tuple[str, str]] = []
    body: list[tuple[str, str]] = []
    for line in lines(graph.graph):
        nodes = line.nodes if names else ()
        remark = origin(line.source, line.layer, nodes) if source else ""
        if line.node.op == "placeholder":
            inputs.append((printer.declaration(line), remark))
        else:
            body.append((f"  {printer.line(line)}", remark))
    body.append((f"  {printer.returned(access.output(graph.graph))}", ""))
    rows = [*_function(name, inputs), *body, ("}", "")]
    return "\n".join([*_header(graph), *_aligned(rows)]) + "\n"


def _header(graph: SpmdGraph) -> Iterator[str]:
    mesh = graph.mesh
    sizes = (f"{spelling.name_text(axis)} = {n}" for axis, n in mesh.axes.items())
    yield f"mesh <{', '.join(sizes)}>"
    for name, groups in mesh.groups.items():
        if name not in mesh.axes:
            axes = mesh.axes_of(name)
            ranks = str([list(group) for group in groups.ranks])
            spanned = axes and f"<{', '.join(map(spelling.name_text, axes))}>"
            yield f"group {spelling.quoted(name)} = {spanned or ranks}"
    for symbol, (low, high) in ranges(graph.graph).items():
        yield f"sym {symbol} in [{low}, {high}]"


def ranges(graph: fx.Graph) -> dict[str, tuple[str, str]]:
    """Return symbol -> least and greatest value as text, in order of appearance."""
    by_name: dict[str, tuple[str, str]] = {}
    for node in graph.nodes:
        if node.op == "output":
            continue
        value = result_of(node)
        for symbol in symbols(type_of(value)):
            if symbol.name not in by_name:
                bounds = _shape_env(value).var_to_range[symbol]
                by_name[symbol.name] = (_bound(bounds.lower), _bound(bounds.upper))
    return by_name


def _bound(bound: Any) -> str:
    text = str(bound)
    return text.replace("int_oo", "inf").replace("oo", "inf")


def _shape_env(value: Any) -> Any:
    """Return the shape environment behind the symbolic sizes of a value."""
    if isinstance(value, list | tuple):
        return next(env for env in map(_shape_env, value) if env is not None)
    sizes = value.shape if isinstance(value, torch.Tensor) else (value,)
    return next((s.node.shape_env for s in sizes if isinstance(s, torch.SymInt)), None)


def _function(name: str, inputs: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield the lines up to the brace: one, or one per input if that is too long or annotated."""
    line = f"func @{name}({', '.join(text for text, _ in inputs)}) {{"
    if len(line) <= WIDTH and not any(remark for _, remark in inputs):
        yield line, ""
        return
    yield f"func @{name}(", ""
    for i, (text, remark) in enumerate(inputs):
        yield f"  {text}{',' * (i + 1 < len(inputs))}", remark
    yield ") {", ""


def _aligned(rows: list[tuple[str, str]]) -> Iterator[str]:
    """Yield lines with their comments in one column, as far as ``WIDTH`` lets them."""
    column = max((len(text) for text, remark in rows if remark and len(text) <= WIDTH), default=0)
    for text, remark in rows:
        yield f"{text:<{column}}  // {remark}" if remark else text
