"""Graphs for other programs: JSON and DOT, one entry per printed value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import fx

from compiler.ir import access
from compiler.ir.collectives import OPS
from compiler.ir.graph import SpmdGraph
from compiler.ir.placement import Placements
from compiler.ir.text.print import Line, Printer, lines, printer_of, ranges
from compiler.ir.text.spelling import quoted, result_of, type_of

Facts = Mapping[fx.Node, Placements]


def to_json(graph: SpmdGraph, *, facts: Facts | None = None) -> str:
    """Return the graph as a JSON object.

    ``schema``: the version of this form; ``mesh``: axis -> size; ``groups``: name -> replica
    groups; ``symbols``: name -> [least, greatest] as text; ``values``: per value its ``number``,
    ``type``, ``placement`` (axis -> text, null where unknown), ``operation``, ``operands``
    (numbers), ``layer`` and ``source``, and for inputs ``name``; ``outputs``: numbers.
    """
    printer = printer_of(graph, facts)
    numbers = printer.numbers
    values = [_value(printer, line, graph) for line in lines(graph.graph)]
    entries = {
        "schema": "commplan.graph/1",
        "mesh": graph.mesh.axes,
        "groups": {name: groups.ranks for name, groups in graph.mesh.groups.items()},
        "symbols": ranges(graph.graph),
        "values": values,
        "outputs": [numbers[node] for node in access.results(access.output(graph.graph))],
    }
    return json.dumps(entries, indent=1, ensure_ascii=False) + "\n"


def _value(printer: Printer, line: Line, graph: SpmdGraph) -> dict[str, Any]:
    placements = printer.placements_of(line)
    entry: dict[str, Any] = {
        "number": line.number,
        "type": str(type_of(result_of(line.node))),
        "placement": placements
        and {axis: str(p) for axis, p in zip(graph.mesh.axes, placements, strict=True)},
        "operation": "input" if line.node.op == "placeholder" else printer.operation(line),
        "operands": _operands(printer, line),
        "layer": line.layer,
        "source": line.source,
    }
    return entry | ({"name": str(line.node.target)} if line.node.op == "placeholder" else {})


def _operands(printer: Printer, line: Line) -> list[int]:
    """Return the numbers of the values that a line reads, without repeats."""
    read = (line.start or line.node).all_input_nodes
    return [printer.numbers[node] for node in read]


def to_dot(graph: SpmdGraph, *, facts: Facts | None = None, name: str = "main") -> str:
    """Return the graph in Graphviz's language: a box per value, inputs grey, collectives red."""
    printer = printer_of(graph, facts)
    rows = [f"digraph {quoted(name)} {{", "  node [shape=box, fontname=monospace];"]
    for line in lines(graph.graph):
        node = line.node
        text = printer.line(line)
        head, _, operation = text.partition(" = ")
        label = quoted(f"{head}\n{operation}" if operation else head)
        style = ""
        if line.start is not None or node.target in OPS:
            style = ", color=red"
        elif node.op in ("placeholder", "get_attr"):
            style = ", color=grey"
        rows.append(f"  {line.number} [label={label}{style}];")
        rows += [f"  {operand} -> {line.number};" for operand in _operands(printer, line)]
    rows.append('  return [label="return", shape=plaintext];')
    results = dict.fromkeys(access.results(access.output(graph.graph)))
    rows += [f"  {printer.numbers[node]} -> return;" for node in results]
    return "\n".join([*rows, "}"]) + "\n"
