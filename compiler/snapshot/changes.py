"""Lists of collectives in the words of a reviewer: alike layers are one line."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from compiler.analysis.layers import layers_text
from compiler.snapshot.snapshot import Entry, Snapshot


class Row(NamedTuple):
    """Collectives that differ in the number of their layer alone.

    Attributes:
        layers: ``layers.{0-3}.moe``, or "outside modules".
        each: how many each of these layers has; of a change, how many more.
        text: kind, operand and axis.
        line: ``file.py:12`` of the model, "" if unknown.
    """

    layers: str
    each: int
    text: str
    line: str


class Change(NamedTuple):
    """What one graph has more or less than another.

    Attributes:
        text: ``layers.{0-3}.moe: +1 all_reduce f32[s0, 64] over tp, my_moe.py:68``.
        line: ``my_moe.py:68``, "" if unknown.
    """

    text: str
    line: str = ""


def rows(snapshot: Snapshot) -> tuple[Row, ...]:
    """Return the collectives of a snapshot in program order."""
    return _folded(Counter(snapshot.collectives), _lines(snapshot))


def changes(old: Snapshot, new: Snapshot) -> tuple[Change, ...]:
    """Return what ``new`` has more and less than ``old``; empty if nothing changed.

    Numbers are those of each layer. The order of collectives is not compared.
    """
    differences = Counter(new.collectives)
    differences.subtract(Counter(old.collectives))
    words = [
        Change(f"{row.layers}: {row.each:+d} {row.text}{row.line and f', {row.line}'}", row.line)
        for row in _folded(differences, _lines(old) | _lines(new))
    ]
    if old.mesh != new.mesh:
        words.insert(0, Change(f"mesh: {_mesh(old)} became {_mesh(new)}"))
    return tuple(words)


def _folded(counts: Mapping[Entry, int], lines: Mapping[Entry, str]) -> tuple[Row, ...]:
    alike = defaultdict[tuple[str, int, str, str], list[str]](list)  # folded path and Row's rest
    for entry, count in counts.items():
        if count:
            pattern = re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", entry.layer)
            alike[pattern, count, str(entry), lines[entry]].append(entry.layer)
    return tuple(
        Row(layers_text(layers) or "outside modules", count, text, line)
        for (_, count, text, line), layers in alike.items()
    )


def _lines(snapshot: Snapshot) -> dict[Entry, str]:
    return {entry: entry.line for entry in snapshot.collectives}


def _mesh(snapshot: Snapshot) -> str:
    return ", ".join(f"{axis} {size}" for axis, size in snapshot.mesh.items())
