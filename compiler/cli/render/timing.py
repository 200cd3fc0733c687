"""The time of every pass."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.table import Table

from compiler.pipeline import PassRecord


def pass_table(records: Sequence[PassRecord]) -> Table:
    """One row per pass that ran."""
    table = Table(box=SIMPLE, title="passes", title_justify="left")
    for heading in ("#", "pass"):
        table.add_column(heading)
    for heading in ("time_ms", "changed", "remarks"):
        table.add_column(heading, justify="right")
    for record in records:
        table.add_row(
            str(record.index),
            record.name,
            f"{record.seconds * 1e3:.1f}",
            "yes" if record.changed else "no",
            str(len(record.remarks)),
        )
    return table
