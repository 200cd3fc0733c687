"""Results of the parts: JSON in a folder, so that each part may be run alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from compiler.errors import CommPlanError

Rows = list[dict[str, Any]]
MACHINE = "machine.json"


class Results:
    """One JSON file per part. Parts that ran under other circumstances do not mix.

    Attributes:
        folder: where the files are.
        facts: of this run: ranks, device, software, model; None: as whatever is there.
    """

    def __init__(self, folder: Path, facts: dict[str, Any] | None = None) -> None:
        self.folder, self.facts = folder, facts

    def write(self, part: str, found: dict[str, Any]) -> None:
        """Replaces the file of a part."""
        text = json.dumps({"facts": self.facts, **found}, indent=1)
        self.write_text(f"{part}.json", text + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Writes a file of the folder."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise CommPlanError(
                "cannot write the results",
                where=str(self.folder / name),
                found=str(error),
                remedy="name another folder with --output",
            ) from None

    def read(self, part: str) -> dict[str, Any] | None:
        """What a part found; None if it has not run, or ran under other circumstances."""
        path = self.folder / f"{part}.json"
        if not path.exists():
            return None
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            facts = found["facts"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CommPlanError(
                f"cannot read the results of the {part} part",
                where=str(path),
                found=f"{type(error).__name__}: {error}",
                remedy=f"remove the file, or run with --parts {part}",
            ) from None
        if self.facts is None:
            self.facts = facts
        return found if facts == self.facts else None

    def join(self, part: str, key: str, rows: Rows, fields: tuple[str, ...]) -> None:
        """Adds rows to ``key`` of a part; those that agree in ``fields`` are replaced."""
        known = self.read(part) or {}
        fresh = {tuple(row[f] for f in fields) for row in rows}
        kept = [r for r in known.get(key, []) if tuple(r[f] for f in fields) not in fresh]
        self.write(part, {**known, "facts": self.facts, key: [*kept, *rows]})
