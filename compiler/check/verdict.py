"""Verdicts, and the report that carries one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from compiler.errors import CommPlanError


class UnprovedError(CommPlanError):
    """What a graph means could not be shown."""


class Verdict(StrEnum):
    """What the checker found out about a source and a target graph.

    IDENTICAL: the same graph. EQUIVALENT: the same function over the reals. NOT_EQUIVALENT: a
    different function, with a counterexample. UNPROVED: neither shown. INVALID: one of the graphs
    is ill-formed, or they do not take and give the same tensors.
    """

    IDENTICAL = "IDENTICAL"
    EQUIVALENT = "EQUIVALENT"
    NOT_EQUIVALENT = "NOT_EQUIVALENT"
    UNPROVED = "UNPROVED"
    INVALID = "INVALID"

    @property
    def runs(self) -> bool:
        """Whether a graph with this verdict may be run in place of its source."""
        return self in (Verdict.IDENTICAL, Verdict.EQUIVALENT)


@dataclass(frozen=True)
class Counterexample:
    """Inputs on which source and target differ.

    Attributes:
        seed: seeds the generator of ``compiler.check.simulate.draw_inputs``.
        output: index of the differing output.
        rank: the rank that holds it.
        difference: largest absolute difference, relative to the largest source element or 0.001.
        source: source elements at the place of the largest difference and around it.
        target: target elements there.
        alike: coordinates per axis, split as in ``compiler.check.rank_axes``, that inputs differ
            at; ranks of greater ones hold what those of the last hold.
    """

    seed: int
    output: int
    rank: int
    difference: float
    source: str
    target: str
    alike: tuple[int, ...] = ()


@dataclass(frozen=True)
class Report:
    """The verdict and why.

    Attributes:
        verdict: the finding.
        explanation: one paragraph: what was shown and in which sense, or the first difference.
        roundings: one line per place where the target rounds differently.
        counterexample: for NOT_EQUIVALENT.
        premises: one line per thing that is taken for granted.
        many_ranks: one line per axis of which more than a few ranks were interpreted, and why: time
            and memory grow with them.
        values: number of values interpreted in both graphs together.
        seconds: wall time of the check.
    """

    verdict: Verdict
    explanation: str
    roundings: tuple[str, ...] = ()
    counterexample: Counterexample | None = None
    premises: tuple[str, ...] = ()
    many_ranks: tuple[str, ...] = ()
    values: int = 0
    seconds: float = 0.0
