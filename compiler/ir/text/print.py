"""Print SPMD graphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx

from compiler.ir import access
from compiler.ir.graph import SpmdGraph
from compiler.ir.placement import Placements
from compiler.ir.text import spelling
from compiler.ir.text.lines import Line, lines, printer_of
from compiler.ir.text.types import held_by, symbols, type_of

WIDTH = 100
"""Columns beyond which the inputs of a function go on lines of their own."""


def print_graph(
    graph: SpmdGraph,
    *,
    facts: Mapping[fx.Node, Placements] | None = None,
    source: bool = False,
    name: str = "main",
) -> str:
    """The text of ``graph``, which ``parse_graph`` reads back.

    Args:
        graph: the graph.
        facts: placements to print beside values; those of inputs come from the graph.
        source: whether to add source line and layer as comments.
        name: name of the function.

    Raises:
        GraphError: a value, op or argument that has no text form.
    """
    printer = printer_of(graph, facts)
    inputs: list[tuple[str, str]] = []
    body: list[tuple[str, str]] = []
    for line in lines(graph.graph):
        remark = _remark(line) if source else ""
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
    """Symbol -> least and greatest value as text, in order of appearance."""
    found: dict[str, tuple[str, str]] = {}
    for node in graph.nodes:
        if node.op == "output":
            continue
        held = held_by(node)
        for symbol in symbols(type_of(held)):
            if symbol.name not in found:
                bounds = _shape_env(held).var_to_range[symbol]
                found[symbol.name] = (_bound(bounds.lower), _bound(bounds.upper))
    return found


def _bound(bound: Any) -> str:
    text = str(bound)
    return text.replace("int_oo", "inf").replace("oo", "inf")


def _shape_env(held: Any) -> Any:
    """The shape environment behind the symbolic sizes of a value."""
    if isinstance(held, list | tuple):
        return next(env for env in map(_shape_env, held) if env is not None)
    sizes = held.shape if isinstance(held, torch.Tensor) else (held,)
    return next((s.node.shape_env for s in sizes if isinstance(s, torch.SymInt)), None)


def _remark(line: Line) -> str:
    where = line.source and f"loc({line.source})"
    return "  ".join(filter(None, (where, line.layer)))


def _function(name: str, inputs: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """The lines up to the brace: one, or one per input where that is too long or annotated."""
    line = f"func @{name}({', '.join(text for text, _ in inputs)}) {{"
    if len(line) <= WIDTH and not any(remark for _, remark in inputs):
        yield line, ""
        return
    yield f"func @{name}(", ""
    for i, (text, remark) in enumerate(inputs):
        yield f"  {text}{',' * (i + 1 < len(inputs))}", remark
    yield ") {", ""


def _aligned(rows: list[tuple[str, str]]) -> Iterator[str]:
    """Lines with their comments in one column, as far as ``WIDTH`` lets them."""
    column = max((len(text) for text, remark in rows if remark and len(text) <= WIDTH), default=0)
    for text, remark in rows:
        yield f"{text:<{column}}  // {remark}" if remark else text
