"""Tables of what was found, printed at the end."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

Row = dict[str, Any]


def table(title: str, *columns: str) -> Table:
    """An empty table, numbers to the right."""
    made = Table(title=title, title_justify="left")
    for column in columns:
        made.add_column(column, justify="right" if made.columns else "left")
    return made


def number(value: float | None, shown: str) -> str:
    """The number; nothing for None."""
    return "" if value is None else format(value, shown)


def show_links(console: Console, found: Row) -> None:
    """Times over all ranks by payload; every table against the known machine's."""
    rows = [*found["machine"]["rows"], *found["kernels"]]
    ranks = max((one["ranks"] for one in rows), default=0)
    mine = [one for one in rows if one["ranks"] == ranks]
    for kind in dict.fromkeys(one["kind"] for one in mine):
        held = [one for one in mine if one["kind"] == kind]
        names = [f"{one['library']}, {', '.join(one['launches'])}" for one in held]
        shown = table(f"{kind} over {ranks} ranks, microseconds", "bytes", *names)
        times = [dict(map(tuple, one["rows"])) for one in held]
        for payload in sorted(set().union(*times)):
            shown.add_row(f"{payload:,}", *(number(one.get(payload), ".2f") for one in times))
        console.print(shown)
    title = f"measured / {found['known'] or 'known'} - 1, by table"
    shown = table(title, "", "ranks", "library", "launch", "points", "known", "median", "maximum")
    for one in found["compared"]:
        shown.add_row(
            one["kind"], str(one["ranks"]), one["library"], one["launch"], str(one["points"]),
            one["known"] or "no table", number(one["median"], "+.1%"),
            number(one["maximum"], "+.1%"),
        )  # fmt: skip
    console.print(shown)


def show_kernels(console: Console, found: Row) -> None:
    """Errors, times and ratios by number of rows."""
    rows = found["rows"]
    if not rows:
        return
    title = "hidden 4,096, bf16, microseconds; deviation: error / allowed error"
    columns = [key for key in rows[0] if key != "launch"]
    shown = table(title, *columns)
    for row in rows:
        shown.add_row(*(f"{row[k]:,}" if k == "rows" else f"{row[k]:.2f}" for k in columns))
    console.print(shown)


def show_model(console: Console, rows: Iterable[Row]) -> None:
    """One line per kind of call, size and form."""
    shown = table(
        "Step-3.5: median of rounds; ratio to as written within rounds", "experts", "call",
        "tokens", "form", "collectives", "ms", "tokens/s", "ratio", "communication",
        "difference", "allowed", "verdict",
    )  # fmt: skip
    for row in rows:
        shown.add_row(
            row["experts"], f"{row['call']}, {row['launch']}", f"{row['tokens']:,}", row["form"],
            str(sum(count for *_, count in row["collectives"])), f"{row['time_us'] / 1e3:.2f}",
            f"{row['tokens_s']:,.0f}", f"{row['ratio']:.3f}", f"{row['communication_share']:.1%}",
            f"{row['difference']:.1e}", f"{row['allowed']:.1e}", row["verdict"],
        )  # fmt: skip
    console.print(shown)


def show_predictions(console: Console, found: Row) -> None:
    """Errors of links by table, all others one by one; then the targets."""
    rows = found["rows"]
    shown = table(
        f"predicted by {found['machine']}", "part", "", "predicted us", "measured us", "error"
    )
    links = [row for row in rows if row["part"] == "links"]
    for name in dict.fromkeys(row["what"].rsplit(", ", 1)[0] for row in links):
        errors = [row["error"] for row in links if row["what"].rsplit(", ", 1)[0] == name]
        middle, worst = statistics.median(errors), max(errors, key=abs)
        shown.add_row("links", name, "", "", f"{middle:+.1%} median, {worst:+.1%} largest")
    for row in rows:
        if row["part"] != "links":
            shown.add_row(
                row["part"], row["what"], f"{row['predicted_us']:.1f}",
                f"{row['measured_us']:.1f}", number(row["error"], "+.1%"),
            )  # fmt: skip
    console.print(shown)
    shown = table("targets", "", "", "found")
    shown.columns[2].justify = "left"
    for one in found["targets"]:
        verdict = {True: "met", False: "MISSED", None: "not measured"}[one["met"]]
        shown.add_row(one["what"], verdict, one["found"])
    console.print(shown)
