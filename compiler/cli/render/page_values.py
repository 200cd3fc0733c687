"""Values of a graph for the report: what computes each and where, what it takes and sends.

Names stand for values, not numbers: copies of a graph share them, so that what a plan left alone
reads the same on both sides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import fx

from compiler.analysis.layers import layer_index, ranges_text
from compiler.ir import access
from compiler.ir.collectives import WAIT, Collective, Kind, collective
from compiler.ir.graph import SpmdGraph
from compiler.ir.placement import Placements
from compiler.ir.text.print import Line, Printer, lines, printer_of
from compiler.plan.decision import Decision
from compiler.plan.planner import Planner

Json = dict[str, Any]
BEFORE, AFTER = "before the layers", "after the layers"
WHOLE = "whole graph"
INPUTS = ("placeholder", "get_attr")
NUMBER = re.compile(r"(?<![^._])(\d+)(?![^._])")
"""A part of a dotted or underscored name that is a number."""


@dataclass(frozen=True)
class Value:
    """One printed value.

    Attributes:
        line: its nodes and layer.
        type: type and placement.
        operation: what computes it, operands by name.
        call: the collective that it is the result of.
        operand_type: type and placement of what that collective reads.
    """

    line: Line
    type: str
    operation: str
    call: Collective | None
    operand_type: str = ""

    @property
    def name(self) -> str:
        """As operands and remarks call it, without ``%``."""
        return self.line.node.name

    @property
    def key(self) -> str:
        """What the value is called on both sides: a collective by what it does to which operand."""
        if self.call is None:
            return self.name
        return f"{self.call.kind} {self.call.op} over {self.call.group} of {self.call.operand.name}"

    def payload_bytes(self, tokens: int | None) -> int:
        """Bytes of the larger of a collective's operand and result on one rank."""
        ends = (self.line.node, *([self.call.operand] if self.call else []))
        return max(access.payload_bytes(node, tokens) for node in ends)


Section = int | str
"""Number of a layer, or what is beside the layers."""

Sections = dict[Section, list[Value]]
"""Values in program order."""


def sections_of(graph: SpmdGraph, facts: Mapping[fx.Node, Placements]) -> Sections:
    """Return the values of ``graph`` by layer; those before and behind have sections of their own.

    Inputs are left out, see ``inputs_of``.

    Args:
        graph: the graph.
        facts: placements to print.
    """
    printer = printer_of(graph, facts, names=True)
    sections, title = Sections(), cast(Section, BEFORE)
    for line in lines(graph.graph):
        if line.node.op in INPUTS:
            continue
        title = _section(line.layer, title)
        call = collective(line.node)
        operand_type = _type(printer, Line(0, call.operand)) if call else ""
        text = _type(printer, line), printer.operation(line)
        sections.setdefault(title, []).append(Value(line, *text, call, operand_type))
    if list(sections) == [BEFORE]:
        return {WHOLE: sections[BEFORE]}
    return sections


def inputs_of(graph: SpmdGraph) -> list[Json]:
    """Return inputs and parameters; those that differ in one number of their names are one."""
    printer, alike = printer_of(graph, None), dict[tuple[str, ...], list[int]]()
    for line in lines(graph.graph):
        if line.node.op in INPUTS:
            parts = NUMBER.split(str(line.node.target), maxsplit=1)
            ends = (parts[0], *parts[2:], _type(printer, line))
            alike.setdefault(ends, []).extend(map(int, parts[1:2]))
    return [
        {"name": _range(numbers).join(ends), "type": text, "count": max(1, len(numbers))}
        for (*ends, text), numbers in alike.items()
    ]


def _range(numbers: Sequence[int]) -> str:
    text = ranges_text(numbers)
    return f"{{{text}}}" if len(numbers) > 1 else text


def _type(printer: Printer, line: Line) -> str:
    """Return type and placement; on which device a graph was captured tells nothing."""
    return re.sub(r"@\w+(:\d+)?", "", printer.declared(line))


def _section(layer: str, before: Section) -> Section:
    index = layer_index(layer)
    if index is not None or before == BEFORE:
        return BEFORE if index is None else index
    return AFTER if layer else before


def title_of(sections: Sequence[Section]) -> str:
    """Return ``layers 3-44, after the layers``."""
    layers = [section for section in sections if isinstance(section, int)]
    text = f"layer{'s' * (len(layers) > 1)} {ranges_text(layers)}"
    return ", ".join([*[text] * bool(layers), *(s for s in sections if isinstance(s, str))])


@dataclass(frozen=True)
class Times:
    """What the values of a planned graph take.

    Attributes:
        time_ps: value -> picoseconds. Together they are the predicted total.
        kernels: collective -> the kernel that does what it and others stand for.
    """

    time_ps: Mapping[str, int]
    kernels: Mapping[str, str]


def times_of(planner: Planner, decision: Decision, tokens: int | None) -> Times:
    """Return what the values of a planned graph take.

    A kernel that does what several values stand for counts at the collective among them, and rows
    that are sent to experts at the reduce_scatter of what they become.
    """
    graph, at = planner.write(decision).graph.graph, names_of(decision.at.graph.graph)
    calls: dict[tuple[Kind, str], list[str]] = {}
    for node, call in waits(graph):
        calls.setdefault((call.kind, moved(node, at)), []).append(node.name)
    run = {term.node for term, _, _ in planner.kernels(decision, tokens)}
    time_ps, kernels = dict[str, int](), dict[str, str]()
    for term, time in planner.predicted_terms(decision, tokens):
        part = next((part for part in term.parts if part.kind), term)
        kind = Kind.REDUCE_SCATTER if part.pads or part.rows else part.kind
        name = part.node.name
        if kind is not None and (alike := calls.get((kind, moved(part.node, at)))):
            name = alike[0] if len(alike) == 1 or part.pads else alike.pop(0)
        time_ps[name] = time_ps.get(name, 0) + time.total_ps
        if term.fused is not None and term.node in run:
            kernels[name] = str(term.fused)
    return Times(time_ps, kernels)


def names_of(graph: fx.Graph) -> frozenset[str]:
    """Return the names of all values."""
    return frozenset(node.name for node in graph.nodes)


def waits(graph: fx.Graph) -> Iterator[tuple[fx.Node, Collective]]:
    """Yield the results of collectives, in program order."""
    for node in graph.nodes:
        call = collective(node) if node.target is WAIT else None
        if call is not None:
            yield node, call


def moved(node: fx.Node, written: frozenset[str]) -> str:
    """Return the value whose sum or rows a collective moves, the same in all copies of a graph.

    Seen through are reductions, and what was put around a collective by a rewrite: padding, and
    dimensions that are moved.

    Args:
        node: the collective's result, or what it is of.
        written: names of values that were there before.
    """
    call = collective(node) if node.target is WAIT else None
    node = call.operand if call else node
    while True:
        call = collective(node) if node.target is WAIT else None
        if call is not None and call.kind is not Kind.ALL_GATHER:
            node = call.operand
        elif node.name not in written and len(operands := access.operands(node)) == 1:
            (node,) = operands
        else:
            return node.name
