"""What lint reports: findings as data, and the rules they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Severity(StrEnum):
    """ERROR: the result is wrong, or ranks hang. WARNING: work without effect, or not looked at."""

    ERROR = "error"
    WARNING = "warning"


RULES: Mapping[str, str] = {
    "double-reduction": "a reduction of a value that is already the same on every rank",
    "wrong-group": "a reduction over ranks that hold the same, not over those that hold addends",
    "wrong-kind": "partial sums averaged or compared, or partial results of two kinds mixed",
    "replicated-term": "a term that every rank adds to a sum that is reduced later",
    "missing-reduction": "a partial sum that joins whole values before it is reduced",
    "nonlinear-on-partial": "a nonlinear op on a partial sum",
    "partial-output": "a partial sum that leaves the graph: returned, written back or sent",
    "sums-shards": "a reduction over shards: rows of different tokens are added",
    "gathers-partial": "a partial sum gathered or broadcast and never summed",
    "sharded-meets-whole": "a shard combined with a whole tensor of the shard's size",
    "crossed-shards": "tensors combined that are cut along different dimensions",
    "wrong-gather-dim": "shards of another dimension gathered along dimension 0",
    "unused-chunks": "all ranks' rows gathered and only some ranks' used",
    "lost-rows": "slices by rank, gathered, that are not all rows in order",
    "dropped-addends": "a partial sum multiplied by zero on some ranks, and reduced",
    "own-scale": "rows scaled by each rank's own number and unscaled by another rank's",
    "uneven-rows": "a reduce_scatter of rows that the ranks do not divide",
    "rank-dependent-size": "ranks that enter a collective with different sizes",
    "rank-dependent-program": "ranks that run different ops",
    "unused-collective": "a collective whose result nobody uses",
    "unknown-collective": "an op that looks like a collective, and that nothing is known of",
}
"""Rule -> what it finds."""

WARNINGS = frozenset({"unused-collective", "unknown-collective"})


@dataclass(frozen=True)
class Finding:
    """One mistake.

    Attributes:
        rule: which of ``RULES``.
        problem: what is wrong; values by their number in the text form, as in ``%7``.
        remedy: what would be right.
        op: the op it is about, empty for the whole program.
        value: the value it is about, ``%7``, empty for the whole program.
        text: the line of the text form, empty for the whole program.
        path: file of the model's code, empty if capture recorded none.
        line: line in it, 0 if capture recorded none.
        layer: dotted path of the module the value comes from.
    """

    rule: str
    problem: str
    remedy: str
    op: str = ""
    value: str = ""
    text: str = ""
    path: str = ""
    line: int = 0
    layer: str = ""

    @property
    def severity(self) -> Severity:
        """How bad it is; the same for all findings of a rule."""
        return Severity.WARNING if self.rule in WARNINGS else Severity.ERROR

    @property
    def source(self) -> str:
        """``model.py:88``, empty if capture recorded none."""
        return f"{Path(self.path).name}:{self.line}" if self.path else ""

    def __str__(self) -> str:
        origin = ", in ".join(filter(None, (self.source and f"from {self.source}", self.layer)))
        where = self.text or self.source
        lines = [f"{self.rule}: {self.problem}"]
        if where:
            lines.append(f"  {where}" + (f"    <-- {origin}" if self.text and origin else ""))
        lines.append(f"  would be right: {self.remedy}")
        return "\n".join(lines)
