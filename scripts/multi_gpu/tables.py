"""Tables of what was found, printed at the end."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

Row = dict[str, Any]


def table(*columns: str, text: int = 1) -> Table:
    """An empty table; its first columns are ``text``, those after them numbers."""
    empty = Table()
    for number, column in enumerate(columns):
        empty.add_column(column, justify="left" if number < text else "right")
    return empty


def heading(console: Console, text: str) -> None:
    """A line above a table, which may be narrower."""
    console.print(f"\n{text}", style="italic", highlight=False, markup=False)


def number(value: float | None, shown: str) -> str:
    """The number; nothing for None."""
    return "" if value is None else format(value, shown)


def show_links(console: Console, content: Row) -> None:
    """Times over all ranks by payload; every table against the known machine's."""
    rows = [*content["machine"]["rows"], *content["kernels"]]
    ranks = max((one["ranks"] for one in rows), default=0)
    mine = [one for one in rows if one["ranks"] == ranks]
    for kind in dict.fromkeys(one["kind"] for one in mine):
        of_kind = [one for one in mine if one["kind"] == kind]
        names = [f"{one['library']}, {', '.join(one['launches'])}" for one in of_kind]
        heading(console, f"{kind} over {ranks} ranks, microseconds")
        shown = table("bytes", *names, text=0)
        times = [dict(map(tuple, one["rows"])) for one in of_kind]
        for payload in sorted(set().union(*times)):
            shown.add_row(f"{payload:,}", *(number(one.get(payload), ".2f") for one in times))
        console.print(shown)
    if not content["known"]:
        return
    heading(console, f"measured / {content['known']} - 1, by table")
    shown = table("", "library", "launch", "known", "ranks", "points", "median", "largest", text=4)
    for one in content["compared"]:
        shown.add_row(
            one["kind"], one["library"], one["launch"], one["known"] or "no table",
            str(one["ranks"]), str(one["points"]), number(one["median"], "+.1%"),
            number(one["maximum"], "+.1%"),
        )  # fmt: skip
    console.print(shown)


def show_kernels(console: Console, content: Row) -> None:
    """Errors, times and ratios by number of rows."""
    rows = content["rows"]
    if not rows:
        return
    heading(console, "hidden 4,096, bf16, microseconds; deviation: error / allowed error")
    columns = [key for key in rows[0] if key != "launch"]
    shown = table(*columns, text=0)
    for row in rows:
        shown.add_row(*(f"{row[k]:,}" if k == "rows" else f"{row[k]:.2f}" for k in columns))
    console.print(shown)


def show_model(console: Console, rows: Iterable[Row]) -> None:
    """One line per kind of call, size and form."""
    heading(console, "Step-3.5-Flash: median of rounds; ratio to as written within each round")
    shown = table(
        "experts", "call", "form", "verdict", "tokens", "collectives", "ms", "tokens/s", "ratio",
        "communication", "difference", "allowed", text=4,
    )  # fmt: skip
    for row in rows:
        share = row["communication_share"]
        shown.add_row(
            row["experts"], f"{row['call']}, {row['launch']}", row["form"], row["verdict"],
            f"{row['tokens']:,}", str(sum(count for *_, count in row["collectives"])),
            f"{row['time_us'] / 1e3:.2f}", f"{row['tokens_s']:,.0f}", f"{row['ratio']:.3f}",
            "" if share is None else f"{share:.1%}", f"{row['difference']:.1e}",
            f"{row['allowed']:.1e}",
        )  # fmt: skip
    console.print(shown)


def show_predictions(console: Console, content: Row) -> None:
    """Errors of links by table, all others one by one; then the targets."""
    rows = content["rows"]
    heading(console, f"predicted by {content['machine']}; error: predicted / measured - 1")
    shown = table("part", "", "predicted us", "measured us", "error", text=2)
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
    heading(console, "targets")
    shown = table("", "", "found", "a cause", text=4)
    for one in content["targets"]:
        verdict = {True: "met", False: "MISSED", None: "not measured"}[one["met"]]
        shown.add_row(one["what"], verdict, one["found"], one["cause"])
    console.print(shown)
