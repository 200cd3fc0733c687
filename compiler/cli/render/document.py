"""The result of a command, printed as text, JSON, GitHub annotations or Markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from compiler.cli.entry import printable
from compiler.cli.render.progress import stdout

Block = str | Text | Table


@dataclass(frozen=True)
class Annotation:
    """What GitHub shows beside a line of the code, or of the whole run.

    Attributes:
        severity: ``error``, ``warning`` or ``notice``.
        title: a few words.
        message: the text.
        place: ``file.py:12`` or a file; empty if it is about neither.
    """

    severity: str
    title: str
    message: str
    place: str = ""

    def __str__(self) -> str:
        located = re.fullmatch(r"(.+?)(?::(\d+))?", self.place)
        properties = {"title": self.title}
        if located and Path(located[1]).is_file():
            line = {"line": located[2]} if located[2] else {}
            properties = {"file": _from_here(located[1]), **line, **properties}
        text = ",".join(f"{key}={_escaped(value, ':,')}" for key, value in properties.items())
        return f"::{self.severity} {text}::{_escaped(self.message)}"


@dataclass(frozen=True)
class Document:
    """A result in every form.

    Attributes:
        schema: ``plan/1``: what JSON is of, and the version of its form.
        values: JSON values.
        blocks: lines and tables, as text and Markdown show them.
        annotations: what GitHub shows.
    """

    schema: str
    values: Mapping[str, Any]
    blocks: Sequence[Block]
    annotations: Sequence[Annotation] = ()

    def print(self, format: str) -> None:
        """Print to standard output in one of the formats."""
        match format:
            case "json":
                print(json.dumps({"schema": f"commplan.{self.schema}", **self.values}, indent=1))
            case "github":
                for annotation in self.annotations:
                    print(annotation)
            case "markdown":
                print("\n\n".join(map(_markdown, self.blocks)))
            case _:
                console = stdout()
                for block in self.blocks:
                    text = block if not isinstance(block, str) else printable(block)
                    console.print(text, soft_wrap=not isinstance(block, Table))


def _from_here(path: str) -> str:
    """Return a path as the repository has it: from the working directory."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def _escaped(text: str, more: str = "") -> str:
    """Return ``text`` with percent signs, line ends and the characters ``more`` as %XX."""
    return "".join(f"%{ord(c):02X}" if c in f"%\r\n{more}" else c for c in printable(text))


def _markdown(block: Block) -> str:
    if isinstance(block, Table):
        return "\n".join(_table(block))
    text = printable(str(block)).strip("\n")
    return f"```text\n{text}\n```" if "\n" in text else _literal(text)


def _table(table: Table) -> Iterator[str]:
    """Yield the lines of a table, below its title and above its caption."""
    if table.title:
        yield from (f"**{_literal(str(table.title))}**", "")
    marks = ("--:" if column.justify == "right" else "---" for column in table.columns)
    rows = zip(*(column.cells for column in table.columns), strict=True)
    for cells in ((column.header for column in table.columns), marks, *rows):
        lines = (str(cell).split("\n") for cell in cells)
        yield f"| {' | '.join('<br>'.join(map(_literal, cell)) for cell in lines)} |"
    if table.caption:
        yield from ("", _literal(str(table.caption)))


def _literal(text: str) -> str:
    """Return a line that Markdown shows as it is."""
    return re.sub(r"([\\`*_<>|#\[\]])", r"\\\1", " ".join(printable(text).split()))
