"""Verdicts as exit codes, and as text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict
from enum import IntEnum
from typing import Any

from rich.console import Console

from compiler.check import Report, Verdict
from compiler.cli.render.layers import layers_text


class ExitCode(IntEnum):
    """How a command ends."""

    OK = 0
    NOT_EQUIVALENT = 1
    FINDINGS = 1
    UNPROVED = 2
    BAD_INPUT = 3
    INTERNAL_ERROR = 70  # as in sysexits.h; 1, Python's own, would read as a verdict


def exit_code(verdict: Verdict) -> ExitCode:
    """The exit code that tells ``verdict``."""
    if verdict.runs:
        return ExitCode.OK
    return {
        Verdict.NOT_EQUIVALENT: ExitCode.NOT_EQUIVALENT,
        Verdict.UNPROVED: ExitCode.UNPROVED,
        Verdict.INVALID: ExitCode.BAD_INPUT,
    }[verdict]


def grouped(lines: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Layers by text, in order of first appearance; names of values do not tell texts apart.

    Of texts that names tell apart, the first stands for all.
    """
    alike: dict[str, list[tuple[str, str]]] = {}
    for layer, text in lines:
        alike.setdefault(re.sub(r"%\w+", "%", text), []).append((layer, text))
    found: dict[str, list[str]] = {}
    for held in alike.values():
        (_, first), others = held[0], sum(text != held[0][1] for _, text in held)
        found[first + (f"; {others} more like it" if others else "")] = [x for x, _ in held]
    return found


def grouped_roundings(report: Report) -> dict[str, list[str]]:
    """Where additions are rounded in another order: what is done -> the layers where."""
    split = (line.partition(": ") for line in report.roundings)
    return grouped((place, text) for place, _, text in split)


def print_report(console: Console, report: Report) -> None:
    """The verdict, its explanation, what rounds differently, and the counterexample."""
    colour = "green" if report.verdict.runs else "red"
    console.print(f"[bold {colour}]{report.verdict}[/]", end="  ")
    console.print(report.explanation, markup=False, highlight=False)
    for text, layers in grouped_roundings(report).items():
        where = layers_text(layers)
        console.print(
            f"  rounding: {len(layers)} x {text}{f'  ({where})' if where else ''}", markup=False
        )
    if (example := report.counterexample) is not None:
        console.print(
            f"  counterexample: inputs of seed {example.seed}, output {example.output}, rank "
            f"{example.rank}, relative difference {example.difference:.3g}\n"
            f"    source  {example.source}\n    target  {example.target}",
            markup=False,
        )


def report_json(report: Report) -> dict[str, Any]:
    """The report as JSON values."""
    return {
        "verdict": str(report.verdict),
        "explanation": report.explanation,
        "roundings": [
            {"what": text, "count": len(layers), "layers": layers}
            for text, layers in grouped_roundings(report).items()
        ],
        "counterexample": report.counterexample and asdict(report.counterexample),
        "values": report.values,
        "seconds": report.seconds,
    }
