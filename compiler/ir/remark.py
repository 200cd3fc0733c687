"""Remarks and pass results: what a rewrite did, and what it did not do and why."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from compiler.ir.graph import SpmdGraph


class RemarkKind(StrEnum):
    """PASSED: done. MISSED: not done, with the reason. NOTE: something the user should know."""

    PASSED = "passed"
    MISSED = "missed"
    NOTE = "note"


@dataclass(frozen=True)
class Remark:
    """One decision.

    Attributes:
        kind: whether something was done.
        value: the value it is about, as the graph names it; empty for the whole graph.
        reason: what was done, or why it was not.
        layer: dotted path of the module the value comes from.
        remedy: what a user may do for another outcome; empty where nothing is known.
    """

    kind: RemarkKind
    value: str
    reason: str
    layer: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        where = " ".join(x for x in (self.layer, self.value) if x)
        return f"{self.kind}: {where + ': ' if where else ''}{self.reason}"


@dataclass(frozen=True)
class PassResult:
    """What a pass returns: the graph (a new one if ``changed``) and its remarks."""

    graph: SpmdGraph
    remarks: tuple[Remark, ...]
    changed: bool
