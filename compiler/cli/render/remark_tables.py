"""Remarks by reason: how often, and in which layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import Any

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from compiler.cli.render.layers import layers_text
from compiler.cli.render.verdicts import grouped
from compiler.ir.remark import Remark, RemarkKind


class Shown(StrEnum):
    """Which remarks are printed; notes always are."""

    MISSED = "missed"
    PASSED = "passed"
    ALL = "all"


COLOURS = {RemarkKind.PASSED: "green", RemarkKind.MISSED: "yellow", RemarkKind.NOTE: "cyan"}


def _by_kind(remarks: Sequence[Remark], shown: Shown) -> Iterator[tuple[RemarkKind, list[Remark]]]:
    """Kinds that are shown, and their remarks."""
    for kind in COLOURS:
        if shown in ("all", str(kind)) or kind is RemarkKind.NOTE:
            yield kind, [remark for remark in remarks if remark.kind is kind]


def assumptions(texts: Iterable[str]) -> Iterator[str]:
    """Texts that differ in the name they quote alone, as one with all names."""
    found: dict[str, list[str]] = {}
    for text in texts:
        before, _, rest = text.partition(" '")
        name, _, why = rest.partition("': ")
        key, held = (f"{before}: {why}", [name]) if why else (text, [])
        found.setdefault(key, []).extend(held)
    for text, names in found.items():
        count = f"{len(names)} x " if len(names) > 1 else ""
        yield f"{count}{text}" + (f"  ({layers_text(names)})" if names else "")


def remarks_table(remarks: Sequence[Remark], shown: Shown) -> Table | None:
    """One row per reason, None if there is none."""
    table = Table(box=SIMPLE)
    table.add_column("remark")
    table.add_column("count", justify="right")
    table.add_column("reason")
    table.add_column("where")
    for kind, held in _by_kind(remarks, shown):
        for reason, layers in grouped((r.layer, r.reason) for r in held).items():
            where = Text(layers_text(layers).replace("}, ", "},\n"))
            table.add_row(Text(str(kind), COLOURS[kind]), str(len(layers)), Text(reason), where)
    return table if table.row_count else None


def remarks_json(remarks: Sequence[Remark], shown: Shown) -> list[dict[str, Any]]:
    """The same as JSON values, each reason as it was said."""
    found = []
    for kind, held in _by_kind(remarks, shown):
        for reason in dict.fromkeys(r.reason for r in held):
            layers = [r.layer for r in held if r.reason == reason]
            found.append(
                {"kind": str(kind), "reason": reason, "count": len(layers), "layers": layers}
            )
    return found
