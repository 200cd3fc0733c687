"""Results of the parts: JSON in a folder, so that each part may be run alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from compiler.cli.inputs.files import write_text
from compiler.errors import CommPlanError

Rows = list[dict[str, Any]]
MACHINE = "machine.json"
FORMAT = 2
"""Of the files. Raise it whenever a part writes something else: older files are passed over."""


class Results:
    """One JSON file per part. Parts that ran under other circumstances do not mix.

    Attributes:
        folder: where the files are.
        facts: of this run: ranks, device, software, model; None: as whatever is there.
        passed_over: files that ran under other circumstances, and how these differ.
    """

    def __init__(self, folder: Path, facts: dict[str, Any] | None = None) -> None:
        self.folder = folder
        self.facts = None if facts is None else {"format": FORMAT, **facts}
        self.passed_over: list[str] = []

    def prepare(self) -> None:
        """Makes the folder.

        Raises:
            CommPlanError: there can be no folder, or no file may be made in it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problem = error.strerror or str(error)
        else:
            if os.access(self.folder, os.W_OK | os.X_OK):
                return
            problem = "no permission to write"
        raise CommPlanError(
            "cannot write results", where=str(self.folder), found=problem,
            remedy="name another folder with --output",
        )  # fmt: skip

    def write(self, part: str, content: dict[str, Any]) -> None:
        """Replaces the file of a part."""
        text = json.dumps({"facts": self.facts, **content}, indent=1)
        self.write_text(f"{part}.json", text + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Writes a file of the folder, whole or not at all.

        Raises:
            CommPlanError: it cannot be written.
        """
        write_text(self.folder / name, text)

    def read(self, part: str) -> dict[str, Any] | None:
        """What a part found; None if it has not run, or ran under other circumstances."""
        path = self.folder / f"{part}.json"
        if not path.exists():
            return None
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            facts = dict(content["facts"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CommPlanError(
                f"cannot read the results of the {part} part",
                where=str(path),
                found=f"{type(error).__name__}: {error}",
                remedy=f"remove the file, or run with --parts {part}",
            ) from None
        if self.facts is None and facts.get("format") == FORMAT:
            self.facts = facts
        if facts == self.facts:
            return content
        wanted = self.facts or {"format": FORMAT}
        differing = {k: facts.get(k) for k, v in wanted.items() if facts.get(k) != v}
        note = f"{path.name} of an earlier run with {differing}, where this one has "
        note += str({k: wanted[k] for k in differing})
        if note not in self.passed_over:
            self.passed_over.append(note)
        return None

    def join(self, part: str, key: str, rows: Rows, fields: tuple[str, ...]) -> None:
        """Adds rows to ``key`` of a part; those that agree in ``fields`` are replaced."""
        former = self.read(part) or {}
        fresh = {tuple(row[f] for f in fields) for row in rows}
        kept = [r for r in former.get(key, []) if tuple(r[f] for f in fields) not in fresh]
        self.write(part, {**former, "facts": self.facts, key: [*kept, *rows]})
