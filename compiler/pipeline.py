"""Runs passes: verifies what each returns, and tells observers.

Passes never verify, print, time or log themselves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from compiler.check import check
from compiler.errors import VerificationError
from compiler.ir import access
from compiler.ir.collectives import check_groups
from compiler.ir.graph import SpmdGraph, well_formed
from compiler.ir.remark import PassResult, Remark, RemarkKind


class Clock:
    """Wall time per stage of the optimizer."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("canonicalize", "plan", "rewrite", "check"), 0.0)
        self.last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Adds the time since the last lap to ``stage``."""
        now = time.perf_counter()
        self.seconds[stage] += now - self.last
        self.last = now


class Pass(Protocol):
    """A rewrite: a frozen dataclass whose fields are its options."""

    @property
    def name(self) -> str:
        """As on the command line."""

    def apply(self, graph: SpmdGraph) -> PassResult:
        """The rewritten graph; ``graph`` is left as it was."""


Step = Callable[..., Pass]
"""The class of a pass, called with its options."""


@dataclass(frozen=True)
class PassRecord:
    """One run of a pass.

    Attributes:
        rewrite: the pass.
        index: how many passes ran before it.
        seconds: wall time of the pass itself.
        changed: whether it returned another graph.
        remarks: what it did and did not do.
        graph: what it returned.
    """

    rewrite: Pass
    index: int
    seconds: float
    changed: bool
    remarks: tuple[Remark, ...]
    graph: SpmdGraph

    @property
    def name(self) -> str:
        """The pass, as on the command line."""
        return self.rewrite.name


Observer = Callable[[PassRecord], None]


def first_wrong(records: Sequence[PassRecord], is_right: Callable[[SpmdGraph], bool]) -> int:
    """Return the position of a pass whose graph is wrong, and its operand right: bisected.

    The graph after all passes is known to be wrong, and that before all to be right.
    """
    low, high = -1, len(records) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_right(records[middle].graph) else (low, middle)
    return high


@dataclass
class Pipeline:
    """Runs one pass after the other.

    Attributes:
        observers: called after each pass.
        bisect_limit: passes from this index on are skipped; None runs all.
        check_each: check every pass's result against its input, not only the last against the
            first.
        drop_unproved: with ``check_each``, leave out what is not shown equivalent, with a remark,
            instead of raising.
        records: what ran so far.
    """

    observers: Sequence[Observer] = ()
    bisect_limit: int | None = None
    check_each: bool = False
    drop_unproved: bool = False
    records: list[PassRecord] = field(default_factory=list)

    def run(self, rewrite: Pass, graph: SpmdGraph) -> SpmdGraph:
        """The graph after ``rewrite``.

        Raises:
            VerificationError: ``check_each`` is set, the result is not shown equivalent, and is
                not to be left out.
        """
        index = len(self.records)
        start = time.perf_counter()
        skipped = self.bisect_limit is not None and index >= self.bisect_limit
        result = PassResult(graph, (), changed=False) if skipped else self._applied(rewrite, graph)
        seconds = time.perf_counter() - start
        if result.changed:
            self._verify(rewrite, result.graph)
            if self.check_each:
                result = self._proved(rewrite, graph, result)
        record = PassRecord(rewrite, index, seconds, result.changed, result.remarks, result.graph)
        self.records.append(record)
        for observer in self.observers:
            observer(record)
        return result.graph

    def _applied(self, rewrite: Pass, graph: SpmdGraph) -> PassResult:
        try:
            return rewrite.apply(graph)
        except Exception as error:
            error.add_note(f"in pass {rewrite.name} ({len(self.records) + 1})")
            raise

    def run_all(
        self,
        steps: Iterable[Step],
        graph: SpmdGraph,
        passes_of: Callable[[Step, SpmdGraph], Iterable[Pass]],
    ) -> SpmdGraph:
        """The graph after all steps of ``passes.PLANNING`` or ``passes.LOWERING``.

        Args:
            steps: classes of passes, in the order in which they run.
            graph: the graph before them.
            passes_of: class, graph that it meets -> its passes, with their options: none, or more.
        """
        for step in steps:
            for rewrite in passes_of(step, graph):
                graph = self.run(rewrite, graph)
        return graph

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """Remarks of all passes, in order."""
        return tuple(remark for record in self.records for remark in record.remarks)

    def _verify(self, rewrite: Pass, after: SpmdGraph) -> None:
        after.graph.lint()
        well_formed(after.graph)
        check_groups(after.graph, after.mesh)
        for node in after.graph.nodes:
            assert "val" in node.meta or not access.has_result(node), (
                f"pass {rewrite.name} left %{node.name} without meta['val']"
            )

    def _proved(self, rewrite: Pass, graph: SpmdGraph, result: PassResult) -> PassResult:
        """``result``, or nothing but a remark if it is not shown equivalent to ``graph``."""
        report = check(graph, result.graph)
        if report.verdict.runs:
            return result
        if self.drop_unproved:
            why = f"{rewrite.name} left out: the checker says {report.verdict}, "
            why += report.explanation
            return PassResult(graph, (Remark(RemarkKind.MISSED, "", why),), changed=False)
        earlier = ", ".join(r.name for r in self.records) or "none"
        raise VerificationError(
            f"pass {rewrite.name} changed the function of the graph: {report.verdict}",
            found=report.explanation,
            where=f"earlier passes: {earlier}",
            remedy="report this, with what `commplan reduce` makes of the graph",
        )
