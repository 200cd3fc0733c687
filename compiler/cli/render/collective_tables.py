"""Collectives before and after, by section of the model: how many, and their payload."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from compiler.analysis.statistics import CountedCollective, statistics
from compiler.cli.render.layers import by_section, kinds_of_layers, ranges_text
from compiler.ir.collectives import Kind
from compiler.ir.graph import SpmdGraph
from compiler.optimize import OptimizationResult

Held = dict[int | None, list[CountedCollective]]
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True)
class Side:
    """Collectives of a section, on one side of the optimizer.

    Attributes:
        counts: layer (None outside layers) -> kind -> how many.
        payload_bytes: per token count, layer -> bytes.
    """

    counts: dict[int | None, Counter[Kind]]
    payload_bytes: tuple[dict[int | None, int], ...]

    @staticmethod
    def of(held: Sequence[Held], layers: Sequence[int | None]) -> Side:
        """From the collectives by layer at each token count."""
        counts = {i: Counter(one.kind for one in held[0].get(i, ())) for i in layers}
        payloads = tuple(
            {i: sum(one.payload_bytes for one in at.get(i, ())) for i in layers} for at in held
        )
        return Side(counts, payloads)

    def to_json(self, tokens: Sequence[int | None]) -> dict[str, Any]:
        """Totals as JSON values."""
        total = sum(self.counts.values(), Counter[Kind]())
        return {
            "counts": {str(kind): count for kind, count in total.items()},
            "payload_bytes": {
                "captured" if count is None else str(count): sum(held.values())
                for count, held in zip(tokens, self.payload_bytes, strict=True)
            },
        }


@dataclass(frozen=True)
class Row:
    """A section of the model: what precedes the layers, the layers of one kind, what follows."""

    section: str
    layers: tuple[int | None, ...]
    before: Side
    after: Side

    def to_json(self, tokens: Sequence[int | None]) -> dict[str, Any]:
        """Totals of the section as JSON values."""
        return {
            "section": self.section,
            "layers": [index for index in self.layers if index is not None],
            "before": self.before.to_json(tokens),
            "after": self.after.to_json(tokens),
        }


def rows_of(source: SpmdGraph, results: Sequence[OptimizationResult]) -> tuple[Row, ...]:
    """Rows with one payload per result; the results' graphs are the same."""
    kinds = kinds_of_layers(source)
    graphs = (source.graph, results[0].spmd.graph)
    sides = [
        [by_section(statistics(g, r.plan.tokens).collectives, kinds) for r in results]
        for g in graphs
    ]
    found = []
    for name in dict.fromkeys(name for side in sides for name in side[0]):
        layers = tuple(i for i, kind in kinds.items() if kind == name) or (None,)
        held = ([at.get(name, {}) for at in side] for side in sides)
        found.append(Row(name, layers, *(Side.of(one, layers) for one in held)))
    return tuple(found)


def bytes_text(payload_bytes: float, unit: int | None = None) -> str:
    """``1.5 MiB``; without the unit's name if the unit is given."""
    chosen = _unit(payload_bytes) if unit is None else unit
    text = f"{payload_bytes / 1024**chosen:.{1 if chosen else 0}f}"
    return text if unit is not None else f"{text} {UNITS[chosen]}"


def _unit(payload_bytes: float) -> int:
    exponent = 0
    while payload_bytes >= 1024 ** (exponent + 1) and exponent < len(UNITS) - 1:
        exponent += 1
    return exponent


def _change(before: str, after: str) -> str:
    return before if before == after else f"{before} → [green]{after}[/]"


def _payload_change(before: int, after: int) -> str:
    if before == after:
        return bytes_text(before)
    unit = _unit(max(before, after))
    return f"{bytes_text(before, unit)} → [green]{bytes_text(after, unit)}[/] {UNITS[unit]}"


Measure = Callable[[Side], dict[int | None, int]]


def collectives_table(rows: Sequence[Row], tokens: Sequence[int | None]) -> Table:
    """Counts per kind and payload per token count, before → after: per layer, and in all."""
    table = Table(box=SIMPLE)
    table.add_column("")
    kinds = list(
        dict.fromkeys(
            kind
            for row in rows
            for side in (row.before, row.after)
            for held in side.counts.values()
            for kind in held
        )
    )
    measures: list[tuple[Measure, Callable[[int, int], str]]] = []
    for kind in kinds:
        table.add_column(str(kind), justify="right")
        measures.append((_counted(kind), lambda a, b: _change(str(a), str(b))))
    for i, count in enumerate(tokens):
        heading = "payload" if count is None else f"payload, {count} token{'s' * (count != 1)}"
        table.add_column(heading, justify="right", no_wrap=True)
        measures.append((_payload(i), _payload_change))
    for row in rows:
        _add_section(table, row, measures)
    table.add_section()
    both = [[row.before for row in rows], [row.after for row in rows]]
    cells = (
        write(*(sum(sum(measure(side).values()) for side in sides) for sides in both))
        for measure, write in measures
    )
    table.add_row("total", *cells, style="bold")
    return table


def _add_section(
    table: Table, row: Row, measures: list[tuple[Measure, Callable[[int, int], str]]]
) -> None:
    """A row for the section; for layers, one for each and one for all of them."""
    several = [index for index in row.layers if index is not None]
    if several:
        each = []
        for measure, write in measures:
            before, after = (list(measure(side).values()) for side in (row.before, row.after))
            same = len(set(before)) == len(set(after)) == 1
            each.append(write(before[0], after[0]) if same else "differs")
        table.add_row(f"{row.section} {ranges_text(several)}, each", *each)
    if len(several) != 1:
        cells = (
            write(sum(measure(row.before).values()), sum(measure(row.after).values()))
            for measure, write in measures
        )
        table.add_row(f"  all {len(several)}" if several else row.section, *cells)


def _counted(kind: Kind) -> Measure:
    return lambda side: {index: held[kind] for index, held in side.counts.items()}


def _payload(at: int) -> Measure:
    return lambda side: side.payload_bytes[at]
