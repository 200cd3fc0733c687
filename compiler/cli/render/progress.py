"""Consoles, tables, and what a command is doing: a clock on a terminal, else lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from compiler.cli.entry import printable

WIDTH_OF_A_FILE = 80
"""Columns where standard output is not a terminal."""


def stderr() -> Console:
    """Return the console of progress, logs and errors; texts are taken literally."""
    return Console(stderr=True, markup=False, highlight=False)


def stdout() -> Console:
    """Return the console of results; texts are taken literally."""
    width = None if sys.stdout.isatty() else WIDTH_OF_A_FILE
    return Console(width=width, markup=False, highlight=False)


def new_table(*columns: Column | str, title: str = "", caption: str = "") -> Table:
    """Return an empty table in the one style there is; no column is cut off."""
    folded = [Column(c, overflow="fold") if isinstance(c, str) else c for c in columns]
    return Table(
        *folded, box=SIMPLE, title=title or None, title_justify="left",
        caption=caption or None, caption_justify="left", pad_edge=False,
    )  # fmt: skip


def number_column(heading: str) -> Column:
    """Return a column of numbers, its heading in several lines: eighty columns are not many."""
    return Column(heading.replace(" ", "\n"), justify="right", overflow="fold")


def say(text: str) -> None:
    """Print a line to standard error."""
    print(text, file=sys.stderr)


@dataclass
class Stages:
    """Announces stages and measures them.

    Attributes:
        seconds: wall time per stage so far, in order of first entry.
    """

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, detail: str = "") -> Iterator[Callable[[str], None]]:
        """Run the body as part of stage ``name``; yield a callback that shows how far it is."""
        console, start = stderr(), time.perf_counter()
        columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
        text = printable(f"{name} {detail}".rstrip())
        with Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal
        ) as progress:
            task = progress.add_task(text)
            yield lambda step: progress.update(task, description=f"{text}: {step}")
        seconds = time.perf_counter() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        say(f"{text}: {seconds:.1f} s")
