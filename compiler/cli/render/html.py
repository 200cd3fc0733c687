"""Graphs as one HTML page: before and after side by side, by layer, collectives linked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import zip_longest
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import fx

from compiler.analysis.layers import layer_index
from compiler.analysis.placements import placements
from compiler.analysis.replication import replicated_over, replication
from compiler.analysis.statistics import statistics
from compiler.cli.render.collectives import bytes_text
from compiler.ir.collectives import WAIT, Collective, collective
from compiler.ir.graph import SpmdGraph
from compiler.ir.text.print import lines, printer_of


@dataclass
class Value:
    """One value on one side.

    Attributes:
        anchor: where links lead, ``before-12``.
        number: ``%12``.
        type: type and placement.
        operation: what computes it.
        where: source line and layer.
        call: the collective that it is the result of.
        change: ``gone``, ``new`` or empty, for collectives.
        links: anchors of collectives on the other side that do its work.
    """

    anchor: str
    number: str
    type: str
    operation: str
    where: str
    call: Collective | None
    change: str = ""
    links: list[str] = field(default_factory=list)


Column = dict[str, Value]
"""Key of a value, the same on both sides -> the value."""


def to_html(graphs: Mapping[str, SpmdGraph], name: str) -> str:
    """Return one page without external resources.

    Args:
        graphs: side -> graph, one side or ``before`` and ``after``.
        name: of the model.
    """
    environment = Environment(
        loader=PackageLoader("compiler.cli"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sides = {side: _by_section(side, graph) for side, graph in graphs.items()}
    if len(sides) == 2:
        _link(graphs, sides)
    summaries = {
        side: {"values": sum(map(len, sides[side].values())), "counts": _summary(graph)}
        for side, graph in graphs.items()
    }
    return environment.get_template("graphs.html.j2").render(
        name=name,
        mesh=str(next(iter(graphs.values())).mesh),
        sides=summaries,
        sections=list(_sections(list(sides.values()))),
    )


def _summary(graph: SpmdGraph) -> str:
    counts = statistics(graph.graph)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.counts.items()))
    payload = bytes_text(counts.payload_bytes)
    return f"{kinds or 'no collectives'}, payload {payload} at example sizes"


def key(node: fx.Node) -> str:
    """Return what a value is called on both sides: its name, or what a collective does to which."""
    call = collective(node)
    if call is None:
        return node.name
    return f"{call.kind} {call.op} over {call.group} of {call.operand.name}"


def _by_section(side: str, graph: SpmdGraph) -> dict[str, Column]:
    """Return title -> values in order; those between layers have sections of their own."""
    printer = printer_of(graph, placements(graph))
    sections: dict[str, Column] = {}
    title = "inputs"
    for line in lines(graph.graph):
        if line.node.op not in ("placeholder", "get_attr"):
            title = _title(line.layer, title)
        head, _, operation = printer.line(line).partition(" = ")
        number, _, type_text = head.partition(": ")
        column, name = sections.setdefault(title, {}), key(line.node)
        while name in column:  # a second collective that does the same
            name += "'"
        column[name] = Value(
            anchor=f"{side}-{line.number}",
            number=number,
            type=type_text,
            operation=operation,
            where="  ".join(filter(None, (line.source, line.layer))),
            call=collective(line.node),
        )
    return sections


def _title(layer: str, before: str) -> str:
    index = layer_index(layer)
    if index is not None:
        return f"layer {index}"
    if before in ("inputs", "before the layers"):
        return "before the layers"
    return "after the layers" if layer else before


def _link(graphs: Mapping[str, SpmdGraph], sides: Mapping[str, Mapping[str, Column]]) -> None:
    """Mark collectives that only one side has, and link those that do each other's work.

    The work of one that is gone is done downstream of its operand where that is still unreduced,
    upstream where it is not.
    """
    before, after = (
        {name: value for column in sections.values() for name, value in column.items()}
        for sections in sides.values()
    )
    for column, other, change in ((before, after, "gone"), (after, before, "new")):
        for name, value in column.items():
            value.change = change if value.call and name not in other else ""
    target = graphs["after"]
    twins, classes = {node.name: node for node in target.graph.nodes}, replication(target)
    for value in before.values():
        if not value.change or value.call is None or value.call.operand.name not in twins:
            continue
        twin = twins[value.call.operand.name]
        reduced = replicated_over(classes[twin], target.mesh.group(value.call.group))
        for name in map(key, _next_waits(twin, upstream=reduced)):
            if name in after and after[name].change:
                value.links.append(after[name].anchor)
                after[name].links.append(value.anchor)


def _next_waits(start: fx.Node, *, upstream: bool) -> Iterator[fx.Node]:
    """Yield the waits that come first on all ways from ``start``."""
    queue = [start]
    seen = set(queue)
    for node in queue:  # which grows
        for other in node.all_input_nodes if upstream else list(node.users):
            if other not in seen:
                seen.add(other)
                if other.target is WAIT:
                    yield other
                else:
                    queue.append(other)


def _sections(sides: list[dict[str, Column]]) -> Iterator[dict[str, Any]]:
    """Yield sections in order, with the rows of both sides aligned by keys."""
    titles = dict.fromkeys(title for sections in sides for title in sections)
    layered = any(title.startswith("layer ") for title in titles)
    for title in sorted(titles, key=_order):
        columns = [sections.get(title, {}) for sections in sides]
        rows = list(_aligned(columns))
        yield {
            "title": title if layered or title == "inputs" else "values",
            "rows": rows,
            "counts": [_kinds(column.values()) for column in columns],
            "changed": any(value and value.change for row in rows for value in row),
        }


def _order(title: str) -> tuple[int, int]:
    places = {"inputs": 0, "before the layers": 1, "after the layers": 3}
    return places.get(title, 2), int(title.split()[-1]) if title.startswith("layer ") else 0


def _kinds(values: Iterable[Value]) -> str:
    counts = Counter(str(value.call.kind) for value in values if value.call)
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))


def _aligned(columns: list[Column]) -> Iterator[tuple[Value | None, ...]]:
    if len(columns) == 1:
        yield from ((value,) for value in columns[0].values())
        return
    left, right = map(list, columns)
    for _, a, b, c, d in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        for one, two in zip_longest(left[a:b], right[c:d]):
            yield columns[0].get(one or ""), columns[1].get(two or "")
