"""Consoles, and what a command is doing: a clock on a terminal, else a line per stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

WIDTH_OF_A_FILE = 160
"""Columns where standard output is not a terminal."""


def stderr() -> Console:
    """Return the console of progress, logs and errors."""
    return Console(stderr=True)


def stdout() -> Console:
    """Return the console of results."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH_OF_A_FILE)


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
        text = f"{name} {detail}".rstrip()
        with Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal
        ) as progress:
            task = progress.add_task(text)
            yield lambda step: progress.update(task, description=f"{text}: {step}")
        seconds = time.perf_counter() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        typer.echo(f"{text}: {seconds:.1f} s", err=True)
