"""Graphs as one HTML page: before and after side by side, by layer, collectives linked."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from itertools import zip_longest

from jinja2 import Environment, PackageLoader, StrictUndefined

from compiler.analysis.layers import layer_index
from compiler.analysis.placements import placements
from compiler.analysis.statistics import statistics
from compiler.cli.render.collective_tables import bytes_text
from compiler.cli.render.moved_collectives import key, moved
from compiler.ir.collectives import collective
from compiler.ir.graph import SpmdGraph
from compiler.ir.text.print import Line, lines, printer_of


@dataclass(frozen=True)
class Shown:
    """One value on one side.

    Attributes:
        anchor: where links lead, ``before-12``.
        number: ``%12``.
        type: type and placement.
        operation: what computes it.
        where: source line and layer.
        collective: whether it is one.
        change: ``gone``, ``new`` or empty, for collectives.
        links: anchors of collectives on the other side that do its work.
    """

    anchor: str
    number: str
    type: str
    operation: str
    where: str
    collective: bool
    change: str = ""
    links: tuple[str, ...] = ()


@dataclass
class Section:
    """Values of one layer, or between layers.

    Attributes:
        title: the layer.
        rows: values that correspond, side by side.
        counts: per side, the collectives.
        changed: whether a collective is gone or new.
    """

    title: str
    rows: list[tuple[Shown | None, ...]] = field(default_factory=list)
    counts: tuple[str, ...] = ()
    changed: bool = False


def to_html(graphs: Mapping[str, SpmdGraph], name: str) -> str:
    """One page without external resources.

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
    _mark_changes(graphs, sides)
    summaries = {
        side: {"values": sum(map(len, sides[side].values())), "counts": _counts_text(graph)}
        for side, graph in graphs.items()
    }
    return environment.get_template("graphs.html.j2").render(
        name=name,
        mesh=str(next(iter(graphs.values())).mesh),
        sides=summaries,
        sections=list(_sections(sides)),
    )


Sided = dict[str, dict[str, Shown]]
"""Title of a section -> key of a value -> how it is shown."""


def _by_section(side: str, graph: SpmdGraph) -> Sided:
    """Values in order, those between layers in sections of their own."""
    printer = printer_of(graph, placements(graph))
    found: Sided = {}
    title = "inputs"
    for line in lines(graph.graph):
        if line.node.op == "placeholder":
            title = "inputs"
        elif line.node.op != "get_attr":
            title = _title(line, title)
        text = printer.line(line)
        head, _, operation = text.partition(" = ")
        number, _, held = head.partition(": ")
        section, name = found.setdefault(title, {}), key(line.node)
        while name in section:  # a second collective that does the same
            name += "'"
        section[name] = Shown(
            anchor=f"{side}-{line.number}",
            number=number,
            type=held,
            operation=operation,
            where="  ".join(filter(None, (line.source, line.layer))),
            collective=collective(line.node) is not None,
        )
    return found


def _title(line: Line, before: str) -> str:
    index = layer_index(line.layer)
    if index is not None:
        return f"layer {index}"
    in_layers = before.startswith(("layer ", "after"))
    if not line.layer and before.startswith("layer "):
        return before
    return "after the layers" if in_layers else "before the layers"


def _counts_text(graph: SpmdGraph) -> str:
    found = statistics(graph.graph)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(found.counts.items()))
    return (
        f"{kinds or 'no collectives'}, payload {bytes_text(found.payload_bytes)} at example sizes"
    )


def _mark_changes(graphs: Mapping[str, SpmdGraph], sides: Mapping[str, Sided]) -> None:
    """Collectives that exist on one side only, and the links between them."""
    if len(graphs) < 2:
        return
    where = {
        side: {name: held for held in sections.values() for name in held}
        for side, sections in sides.items()
    }
    links = moved(graphs["before"], graphs["after"])
    for side, change in (("before", "gone"), ("after", "new")):
        other = "after" if side == "before" else "before"
        for name, others in links[side].items():
            held = where[side][name]
            shown = held[name]
            anchors = tuple(where[other][o][o].anchor for o in others if o in where[other])
            held[name] = replace(shown, change=change, links=anchors)


def _sections(sides: Mapping[str, Sided]) -> Iterator[Section]:
    """Sections in order, with the rows of both sides aligned by the names of nodes."""
    titles = dict.fromkeys(title for sections in sides.values() for title in sections)
    layered = any(title.startswith("layer ") for title in titles)
    for title in sorted(titles, key=_order):
        columns = [sections.get(title, {}) for sections in sides.values()]
        section = Section(title if layered or title == "inputs" else "values")
        section.rows = list(_aligned(columns))
        section.changed = any(shown and shown.change for row in section.rows for shown in row)
        section.counts = tuple(
            _kinds(shown for shown in column.values() if shown.collective) for column in columns
        )
        yield section


def _order(title: str) -> tuple[int, int]:
    fixed = {"inputs": 0, "before the layers": 1, "after the layers": 3}
    return (fixed.get(title, 2), int(title.split()[-1]) if title.startswith("layer ") else 0)


def _kinds(found: Iterator[Shown]) -> str:
    names = Counter(re.split(r"[.(]", shown.operation)[1] for shown in found)
    return ", ".join(f"{count} {name}" for name, count in sorted(names.items()))


def _aligned(columns: list[dict[str, Shown]]) -> Iterator[tuple[Shown | None, ...]]:
    if len(columns) == 1:
        yield from ((shown,) for shown in columns[0].values())
        return
    left, right = (list(column) for column in columns)
    for _, a, b, c, d in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        for one, two in zip_longest(left[a:b], right[c:d]):
            yield columns[0].get(one or ""), columns[1].get(two or "")
