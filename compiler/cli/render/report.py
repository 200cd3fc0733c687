"""Verdicts, remarks, assumptions and the time of passes: as tables, as JSON, as exit codes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from compiler.analysis.layers import layers_text
from compiler.check import Report
from compiler.cli.render.document import Annotation, Document
from compiler.cli.render.progress import new_table, number_column
from compiler.ir.remark import Remark, RemarkKind
from compiler.pipeline import PassRecord

COLOURS = {RemarkKind.PASSED: "green", RemarkKind.MISSED: "yellow", RemarkKind.NOTE: "cyan"}


def report_document(report: Report, command: str) -> Document:
    """Return the report as the result of a command."""
    annotation = verdict_annotation(report, f"commplan {command}")
    return Document(f"{command}/1", report_json(report), report_blocks(report), [annotation])


def verdict_annotation(report: Report, title: str) -> Annotation:
    """Return the verdict as GitHub shows it; an error if the target must not run."""
    message = "\n".join(map(str, report_blocks(report)))
    return Annotation("notice" if report.verdict.runs else "error", title, message)


def report_blocks(report: Report) -> list[str | Text]:
    """Return the verdict, its explanation, what rounds differently, and the counterexample."""
    colour = "green" if report.verdict.runs else "red"
    verdict = Text.assemble((str(report.verdict), f"bold {colour}"), "  ", report.explanation)
    lines = []
    for text, layers in roundings(report).items():
        where = f"  ({layers_text(layers)})" if any(layers) else ""
        lines.append(f"  rounding: {len(layers)} x {text}{where}")
    lines += [f"  premise: {premise}" for premise in report.premises]
    lines += [f"  ranks: {line}" for line in report.many_ranks]
    if (example := report.counterexample) is not None:
        lines.append(
            f"  counterexample: inputs of seed {example.seed}, output {example.output}, rank "
            f"{example.rank}, relative difference {example.difference:.3g}\n"
            f"    source  {example.source}\n    target  {example.target}",
        )
    return [verdict, *lines]


def report_json(report: Report) -> dict[str, Any]:
    """Return the report as JSON values, its roundings with the layers where they are."""
    rounded = [
        {"what": text, "count": len(layers), "layers": layers}
        for text, layers in roundings(report).items()
    ]
    return asdict(report) | {"roundings": rounded}


def roundings(report: Report) -> dict[str, list[str]]:
    """Return what is rounded in another order -> the layers where."""
    parts = (line.partition(": ") for line in report.roundings)
    return layers_by_text((layer, text) for layer, _, text in parts)


def layers_by_text(lines: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return text -> layers, in order of first appearance.

    Of texts that differ only in names of values, the first stands for all.
    """
    alike: dict[str, list[tuple[str, str]]] = {}
    for layer, text in lines:
        alike.setdefault(re.sub(r"%\w+", "%", text), []).append((layer, text))
    layers: dict[str, list[str]] = {}
    for group in alike.values():
        first = group[0][1]
        others = sum(text != first for _, text in group)
        layers[first + (f"; {others} more like it" if others else "")] = [x for x, _ in group]
    return layers


def remarks_table(remarks: Sequence[Remark], shown: str) -> Table | None:
    """Return one row per reason, or None without any."""
    rows = new_table("remark", number_column("count"), "reason", "where")
    for row in remark_rows(remarks, shown):
        kind = Text(str(row["kind"]), COLOURS[row["kind"]])
        where = str(row["where"]).replace("}, ", "},\n")
        rows.add_row(kind, str(row["count"]), row["reason"], where)
    return rows if rows.row_count else None


def remark_rows(remarks: Sequence[Remark], shown: str) -> Iterator[dict[str, Any]]:
    """Yield reasons, with the layers where they hold as text."""
    for kind, alike in _by_kind(remarks, shown):
        for reason, layers in layers_by_text((r.layer, r.reason) for r in alike).items():
            where = layers_text(layers)
            yield {"kind": kind, "count": len(layers), "reason": reason, "where": where}


def remarks_json(remarks: Sequence[Remark], shown: str) -> list[dict[str, Any]]:
    """Return the same as JSON values, each reason as the optimizer gave it."""
    layers: dict[tuple[str, str], list[str]] = {}
    for kind, alike in _by_kind(remarks, shown):
        for remark in alike:
            layers.setdefault((str(kind), remark.reason), []).append(remark.layer)
    return [
        {"kind": kind, "reason": reason, "count": len(paths), "layers": paths}
        for (kind, reason), paths in layers.items()
    ]


def shown_remarks(remarks: Sequence[Remark], shown: str) -> Iterator[Remark]:
    """Yield the remarks ``shown``, by kind."""
    for _, alike in _by_kind(remarks, shown):
        yield from alike


def _by_kind(remarks: Sequence[Remark], shown: str) -> Iterator[tuple[RemarkKind, list[Remark]]]:
    """Yield the remarks ``shown``: ``all``, ``passed`` or ``missed``; notes always are."""
    for kind in COLOURS:
        if shown in ("all", str(kind)) or kind is RemarkKind.NOTE:
            yield kind, [remark for remark in remarks if remark.kind is kind]


def assumptions(texts: Iterable[str]) -> Iterator[str]:
    """Yield the texts; those that differ only in the name they quote are one, with all names."""
    names: dict[str, list[str]] = {}
    for text in texts:
        match = re.fullmatch(r"(.*?) '(.*?)'(: .*)", text, re.DOTALL)
        reason, quoted = (match[1] + match[3], [match[2]]) if match else (text, [])
        names.setdefault(reason, []).extend(quoted)
    for text, paths in names.items():
        count = f"{len(paths)} x " if len(paths) > 1 else ""
        yield f"{count}{text}" + (f"  ({layers_text(paths)})" if paths else "")


def pass_table(records: Sequence[PassRecord]) -> Table:
    """Return one row per pass that ran."""
    numbers = map(number_column, ("time_ms", "changed", "remarks"))
    rows = new_table("#", "pass", *numbers, title="passes")
    for record in records:
        milliseconds, changed = f"{record.seconds * 1e3:.1f}", "yes" if record.changed else "no"
        rows.add_row(
            str(record.index), record.name, milliseconds, changed, str(len(record.remarks))
        )
    return rows
