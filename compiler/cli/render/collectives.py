"""Collectives before and after by section of the model; layers and bytes as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE
from rich.table import Column, Table
from rich.text import Text

from compiler.analysis.layers import layer_index, layer_metadata, ranges_text
from compiler.analysis.statistics import CountedCollective, statistics
from compiler.ir.collectives import Kind
from compiler.ir.graph import SpmdGraph
from compiler.optimize import OptimizationResult

EMBEDDING, HEAD, WHOLE = "embedding", "head", "whole graph"
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")

Layers = dict[int | None, list[CountedCollective]]
"""Layer (None outside layers) -> its collectives."""


@dataclass(frozen=True)
class Row:
    """The collectives of a section of the model.

    Attributes:
        section: its name.
        layers: its layers; none outside layers.
        before: the collectives of the source, per token count.
        after: those of the optimized graph.
    """

    section: str
    layers: tuple[int, ...]
    before: tuple[Layers, ...]
    after: tuple[Layers, ...]

    def to_json(self, tokens: Sequence[int | None]) -> dict[str, Any]:
        """Return counts by kind, and payload bytes per token count, as JSON values."""
        keys = ["captured" if count is None else str(count) for count in tokens]
        sides: dict[str, Any] = {}
        for name, side in (("before", self.before), ("after", self.after)):
            calls = [[call for layer in at.values() for call in layer] for at in side]
            payloads = (sum(call.payload_bytes for call in at) for at in calls)
            sides[name] = {
                "counts": Counter(str(call.kind) for call in calls[0]),
                "payload_bytes": dict(zip(keys, payloads, strict=True)),
            }
        return {"section": self.section, "layers": list(self.layers), **sides}


def rows_of(source: SpmdGraph, results: Sequence[OptimizationResult]) -> tuple[Row, ...]:
    """Return a row per section; ``results`` have the same graph, at several token counts."""
    kinds = kinds_of_layers(source)
    before, after = (
        [by_section(statistics(graph, r.plan.tokens).collectives, kinds) for r in results]
        for graph in (source.graph, results[0].spmd.graph)
    )
    return tuple(
        Row(
            section,
            tuple(index for index, kind in kinds.items() if kind == section),
            *(tuple(at.get(section, {}) for at in side) for side in (before, after)),
        )
        for section in before[0] | after[0]
    )


def kinds_of_layers(graph: SpmdGraph) -> dict[int, str]:
    """Return layer -> the section it belongs to: ``dense layers`` or ``sparse layers``."""
    return {layer.index: f"{layer.kind} layers" for layer in layer_metadata(graph)}


def section_names(layers: Iterable[int | None], kinds: Mapping[int, str]) -> Iterator[str]:
    """Yield the section of each value, by their layers in program order; None: outside layers.

    What precedes all layers is the embedding.
    """
    in_layers = False
    for index in layers:
        in_layers |= index in kinds
        outside = (HEAD if in_layers else EMBEDDING) if kinds else WHOLE
        yield outside if index is None else kinds.get(index, outside)


def by_section(calls: Sequence[CountedCollective], kinds: Mapping[int, str]) -> dict[str, Layers]:
    """Return section -> layer -> collectives, each in program order."""
    sections: dict[str, Layers] = {}
    layers = [layer_index(call.layer) for call in calls]
    for call, index, name in zip(calls, layers, section_names(layers, kinds), strict=True):
        sections.setdefault(name, {}).setdefault(index, []).append(call)
    return sections


def number_column(heading: str) -> Column:
    """Return a column of numbers."""
    return Column(heading, justify="right", no_wrap=True)


def collectives_table(rows: Sequence[Row], tokens: Sequence[int | None]) -> Table:
    """Return counts per kind and payload per token count, before → after: per layer and in all."""
    sides = [side[0] for row in rows for side in (row.before, row.after)]
    kinds = dict.fromkeys(call.kind for side in sides for calls in side.values() for call in calls)
    payloads = ["payload" if n is None else f"payload, {n} token{'s' * (n != 1)}" for n in tokens]
    columns: list[Kind | int] = [*kinds, *range(len(tokens))]

    def each(row: Row) -> Iterator[str | Text]:
        for column in columns:
            before, after = _amounts(row.before, column), _amounts(row.after, column)
            pairs = {(before[layer], after[layer]) for layer in row.layers}
            yield _change(*pairs.pop(), column) if len(pairs) == 1 else "differs"

    def total(rows: Sequence[Row]) -> Iterator[Text]:
        for column in columns:
            before = sum(_amounts(row.before, column).total() for row in rows)
            yield _change(before, sum(_amounts(r.after, column).total() for r in rows), column)

    table = Table("", *map(number_column, [*map(str, kinds), *payloads]), box=SIMPLE)
    for row in rows:
        if row.layers:
            table.add_row(f"{row.section} {ranges_text(row.layers)}, each", *each(row))
        if len(row.layers) != 1:
            name = f"  all {len(row.layers)}" if row.layers else row.section
            table.add_row(name, *total([row]))
    table.add_section()
    table.add_row("total", *total(rows), style="bold")
    return table


def _amounts(side: tuple[Layers, ...], column: Kind | int) -> Counter[int | None]:
    """Return layer -> collectives of a kind, or their payload bytes at a token count."""
    if isinstance(column, Kind):
        return Counter({i: sum(c.kind is column for c in calls) for i, calls in side[0].items()})
    return Counter({i: sum(c.payload_bytes for c in calls) for i, calls in side[column].items()})


def _change(before: int, after: int, column: Kind | int) -> Text:
    unit = 0 if isinstance(column, Kind) else _unit(max(before, after))
    texts = [_in_unit(amount, unit) for amount in (before, after)]
    text = Text(texts[0])
    if before != after:
        text.append(" → ").append(texts[1], "green")
    return text if isinstance(column, Kind) else text.append(f" {UNITS[unit]}")


def bytes_text(payload_bytes: int) -> str:
    """Return ``1.5 MiB``."""
    unit = _unit(payload_bytes)
    return f"{_in_unit(payload_bytes, unit)} {UNITS[unit]}"


def _unit(payload_bytes: int) -> int:
    return min(max(payload_bytes.bit_length() - 1, 0) // 10, len(UNITS) - 1)


def _in_unit(amount: int, unit: int) -> str:
    return f"{amount / 1024**unit:.{1 if unit else 0}f}"
