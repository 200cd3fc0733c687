"""Remarks by reason: how often, and in which layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import Any

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from compiler.cli.layers import layers_text
from compiler.cli.verdicts import grouped
from compiler.ir.remark import Remark, RemarkKind


class Shown(StrEnum):
    """Which remarks are printed; notes always are."""

    MISSED = "missed"
    PASSED = "passed"
    ALL = "all"


COLOURS = {RemarkKind.PASSED: "green", RemarkKind.MISSED: "yellow", RemarkKind.NOTE: "cyan"}


def _by_kind(remarks: Sequence[Remark], shown: Shown) -> list[tuple[RemarkKind, str, list[str]]]:
    """Kind, reason, and the layer of each remark with that reason."""
    kinds = [k for k in COLOURS if shown in ("all", str(k)) or k is RemarkKind.NOTE]
    return [
        (kind, reason, layers)
        for kind in kinds
        for reason, layers in grouped(
            (remark.layer, remark.reason) for remark in remarks if remark.kind is kind
        ).items()
    ]


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
    for kind, reason, layers in _by_kind(remarks, shown):
        where = Text(layers_text(layers).replace("}, ", "},\n"))
        table.add_row(Text(str(kind), COLOURS[kind]), str(len(layers)), Text(reason), where)
    return table if table.row_count else None


def remarks_json(remarks: Sequence[Remark], shown: Shown) -> list[dict[str, Any]]:
    """The same as JSON values."""
    return [
        {"kind": str(kind), "reason": reason, "count": len(layers), "layers": layers}
        for kind, reason, layers in _by_kind(remarks, shown)
    ]
