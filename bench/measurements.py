"""From measured rows to the tables of a machine file.

A machine file keeps what was written by hand (specifications, sources, the name its GPU has in
tables of measurements), rows measured for it alone (``rows``), and the ``tables`` fitted to both.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.fit import MIB, MIN_POINTS, Fit, fit
from compiler.cost.tables import Fused, Launch, LibraryClass, MachineError
from compiler.ir.collectives import Kind

COLUMNS = ("source", "gpu", "n_ranks", "library", "op", "bytes", "time_us", "notes")
OPS = (*map(str, Kind), *map(str, Fused))
ROUNDED = 4
"""Digits of the errors that machine files state."""


@dataclass(frozen=True)
class Measurements:
    """Measured times of one collective on one rank count of one kind of GPU, by one library.

    Attributes:
        gpu: as the source names it.
        kind: the collective, or a fused kernel.
        ranks: ranks of the group.
        library: name and version.
        library_class: who implements it.
        launches: how it may be launched at these times.
        points: (payload bytes, microseconds), ascending.
        source: where they are published.
    """

    gpu: str
    kind: str
    ranks: int
    library: str
    library_class: LibraryClass
    launches: tuple[Launch, ...]
    points: tuple[tuple[int, float], ...]
    source: str

    @property
    def sort_key(self) -> tuple[str, int, str, tuple[Launch, ...]]:
        """The order of tables in a machine file."""
        return self.kind, self.ranks, self.library.lower(), self.launches


def read_measurements(path: Path) -> tuple[Measurements, ...]:
    """All tables of a CSV file with the columns ``COLUMNS``.

    NCCL's rows come from nccl-tests, which has no Python between calls: they stand for both ways
    of launching. Other libraries' rows say in ``notes`` how they were launched.

    Raises:
        MachineError: the file cannot be read, lacks a column or has no rows.
    """
    rows: dict[tuple[str, int, str, str, str], dict[int, tuple[float, str]]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            table = csv.DictReader(file)
            if missing := [name for name in COLUMNS if name not in (table.fieldnames or ())]:
                raise ValueError(f"no column {', '.join(missing)}")
            for row in table:
                ranks, payload, time_us = _numbers(row, table.line_num)
                launched = "graph" if row["notes"].endswith("CUDA graph") else "eager"
                key = row["gpu"], ranks, row["library"], row["op"], launched
                rows.setdefault(key, {})[payload] = time_us, row["source"]
            if not rows:
                raise ValueError("no rows")
    except (OSError, TypeError, AttributeError, ValueError) as error:
        raise MachineError(
            "cannot read the measurements",
            where=str(path),
            found=f"{type(error).__name__}: {error}",
            remedy=f"a CSV file with the columns {', '.join(COLUMNS)}",
        ) from None
    tables = []
    for (gpu, ranks, name, kind, launched), times in rows.items():
        library = re.sub(r" \(.*\)$", "", name)
        nccl = library.startswith("NCCL")
        tables.append(
            Measurements(
                gpu=gpu,
                kind=kind,
                ranks=ranks,
                library=library,
                library_class=LibraryClass.NCCL if nccl else LibraryClass.CUSTOM,
                launches=tuple(Launch) if nccl else (Launch(launched),),
                points=tuple((b, times[b][0]) for b in sorted(times)),
                source=next(iter(times.values()))[1],
            )
        )
    return tuple(tables)


def _numbers(row: Mapping[str, str | None], line: int) -> tuple[int, int, float]:
    """Return ranks, bytes and microseconds of a row.

    Raises:
        ValueError: it names the line and the column that is wrong.
    """
    if row["op"] not in OPS:
        raise ValueError(f"line {line}: op must be one of {', '.join(OPS)}, not {row['op']!r}")
    numbers = []
    for column, least in (("n_ranks", 2), ("bytes", 1), ("time_us", 0)):
        try:
            number = float(row[column] or "nan")
        except ValueError:
            number = math.nan
        if not (least <= number < 10**18 and number) or (least and number % 1):
            raise ValueError(f"line {line}: {column} must be a number, got {row[column]!r}")
        numbers.append(number)
    return int(numbers[0]), int(numbers[1]), numbers[2]


def rows_of(data: Mapping[str, Any]) -> tuple[Measurements, ...]:
    """The tables whose rows a machine file holds itself."""
    return tuple(
        Measurements(
            gpu=data["title"],
            kind=one["kind"],
            ranks=one["ranks"],
            library=one["library"],
            library_class=LibraryClass(one["class"]),
            launches=tuple(map(Launch, one["launches"])),
            points=tuple((payload, time_us) for payload, time_us in one["rows"]),
            source=one["source"],
        )
        for one in data.get("rows", ())
    )


def newest(
    measured: Iterable[Measurements],
) -> tuple[tuple[Measurements, ...], tuple[Measurements, ...]]:
    """Tables of the newest version of each library, and the others."""
    versions: dict[tuple[Any, ...], list[Measurements]] = {}
    for one in measured:
        key = one.gpu, one.kind, one.ranks, one.library.split()[0], one.launches
        versions.setdefault(key, []).append(one)
    kept = [max(tables, key=lambda one: _version(one.library)) for tables in versions.values()]
    left = [one for tables in versions.values() for one in tables if one not in kept]
    return tuple(kept), tuple(left)


def _version(library: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", library)))


@dataclass(frozen=True)
class FittedTable:
    """A table with its curve."""

    measured: Measurements
    fit: Fit

    def to_json(self) -> dict[str, Any]:
        """As machine files state it."""
        one, errors = self.measured, self.fit.errors
        return {
            "kind": one.kind,
            "ranks": one.ranks,
            "library": one.library,
            "class": str(one.library_class),
            "launches": [str(launch) for launch in one.launches],
            "min_bytes": one.points[0][0],
            "max_bytes": one.points[-1][0],
            "median_error": round(errors.median, ROUNDED),
            "maximum_error_above_1mib": round(errors.maximum_above_1mib, ROUNDED)
            if one.points[-1][0] > MIB
            else None,
            "regimes": [
                [r.from_bytes, r.alpha_ps, r.beta_fs_per_byte] for r in self.fit.curve.regimes
            ],
            "source": one.source,
        }


def fitted(measured: Sequence[Measurements]) -> tuple[FittedTable, ...]:
    """Every table with its curve, in the order of machine files.

    Raises:
        MachineError: a table of too few rows.
    """
    for one in measured:
        if len(one.points) < MIN_POINTS:
            raise MachineError(
                f"a table of {one.kind} over {one.ranks} ranks has too few rows",
                where=f"{one.gpu}, {one.library}",
                found=f"{len(one.points)} payloads",
                remedy=f"measure at least {MIN_POINTS}",
            )
    ordered = sorted(measured, key=lambda one: one.sort_key)
    return tuple(FittedTable(one, fit(one.points)) for one in ordered)


def refitted(
    data: Mapping[str, Any], measured: Iterable[Measurements]
) -> tuple[dict[str, Any], tuple[FittedTable, ...]]:
    """A machine file's values with its tables fitted anew, and the tables.

    Args:
        data: a machine file's values; ``gpu`` names its GPU in ``measured``.
        measured: tables of any GPUs; the newest version of each library counts.
    """
    if "node" in data:
        return dict(data), ()
    own = [one for one in measured if one.gpu == data.get("gpu")]
    tables = fitted([*newest(own)[0], *rows_of(data)])
    return {**data, "tables": [table.to_json() for table in tables]}, tables


def machine_text(data: Mapping[str, Any]) -> str:
    """A machine file: JSON with one line per table."""
    lines = []
    for key, value in data.items():
        if key in ("rows", "tables") and value:
            inside = ",\n  ".join(json.dumps(one) for one in value)
            lines.append(f" {json.dumps(key)}: [\n  {inside}\n ]")
        else:
            text = json.dumps(value, indent=1).replace("\n", "\n ")
            lines.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"
