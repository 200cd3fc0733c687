"""What became of every graph that the backend compiled in this process."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from compiler.analysis.statistics import Statistics
from compiler.check import Verdict
from compiler.ir.remark import Remark
from compiler.optimize.result import ModelReport
from compiler.switches import switch_logs_on

LOG = logging.getLogger("compiler.backend")
"""Switched on by ``TORCH_LOGS="+compiler.backend"``, or by ``COMMPLAN_LOGS=debug|info|…``."""


class Outcome(StrEnum):
    """What the backend did with a graph."""

    OPTIMIZED = "optimized"
    UNCHANGED = "unchanged"
    FELL_BACK = "fell back"


@dataclass(frozen=True)
class GraphReport:
    """What became of one graph.

    Attributes:
        graph_id: Dynamo's id of the compilation, ``0/1``: frame and count.
        outcome: whether the rewritten graph runs.
        reason: why it does not; empty if it does.
        model: plan, verdict, remarks and collectives; None where nothing was planned.
        inputs: how many tensors have each placement, as text.
        seconds: wall time of the backend's own work.
    """

    graph_id: str
    outcome: Outcome
    reason: str = ""
    model: ModelReport | None = None
    inputs: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def before(self) -> Statistics:
        """Collectives as the author wrote them."""
        return self.model.before if self.model else Statistics(())

    @property
    def after(self) -> Statistics:
        """Collectives of the graph that runs."""
        return self.model.after if self.model else Statistics(())

    @property
    def verdict(self) -> Verdict:
        """The checker's verdict; UNPROVED where verification was switched off."""
        return self.model.verdict if self.model else Verdict.UNPROVED

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """What was done, what was not and why."""
        return self.model.remarks if self.model else ()

    def __str__(self) -> str:
        lines = [
            f"graph {self.graph_id}: {self.outcome}" + (f": {self.reason}" * bool(self.reason))
        ]
        if self.inputs:
            lines.append(f"  inputs: {', '.join(f'{n} {p}' for p, n in self.inputs.items())}")
        return "\n".join([*lines, *([str(self.model)] if self.model else ())])


_REPORTS: list[GraphReport] = []


def reports() -> tuple[GraphReport, ...]:
    """Reports of the graphs that the backend compiled in this process, in order."""
    return tuple(_REPORTS)


def reset_reports() -> None:
    """Forget the reports."""
    _REPORTS.clear()


def add(report: GraphReport) -> None:
    """Keep a report, and log it."""
    switch_logs_on()
    _REPORTS.append(report)
    LOG.info("%s", report)
