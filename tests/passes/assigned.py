"""Passes that apply an assignment, as the ASSIGN lines of case files state it.

``%0, %2: P by all_reduce sum over tp`` lists the values that are Partial for one reduction;
``by …`` may be left out where the graph has one. ``%2, %3: S over tp`` lists values held as shards,
and ``%2: S, %1: dispatched over tp`` partial sums for which rows are sent as well. Every line
numbers the graph that the line before left.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from compiler.analysis.partial_forms import PartialAssignment
from compiler.analysis.partial_values import partial_values
from compiler.analysis.reductions import reduction_facts, reductions
from compiler.ir.collectives import Kind
from compiler.ir.comm_plan import RowStage, Stage
from compiler.ir.graph import SpmdGraph
from compiler.ir.remark import PassResult
from passes import PlaceReductions, ShardRows
from tests.support.case_files import CaseError
from tests.support.replay import reduction_assignment, row_assignment

VALUES = r"(%\d+(?:, %\d+)*)"
PARTIAL = re.compile(VALUES + r": P(?: by (all_reduce|reduce_scatter) (\w+) over (\S+))?")
SHARDS = re.compile(VALUES + r": S(?:, " + VALUES + r": dispatched)? over (\S+)")


@dataclass(frozen=True)
class AssignedReductions:
    """place-reductions by the lines of a case; without any, all stay where the author put them."""

    name: ClassVar[str] = "place-reductions"
    assign: tuple[str, ...] = ()
    allow_dtype_widening: str = "off"
    allow_new_groups: str = "on"

    def apply(self, graph: SpmdGraph) -> PassResult:
        results = []
        for line in self.assign:
            rewrite = PlaceReductions(self.assignment(graph, line))
            results.append(rewrite.apply(graph))
            graph = results[-1].graph
        if not self.assign:
            results += [PlaceReductions(kept).apply(graph) for kept in self.kept(graph)]
        remarks = tuple(remark for result in results for remark in result.remarks)
        return PassResult(graph, remarks, any(result.changed for result in results))

    @property
    def allowed(self) -> tuple[bool, bool]:
        return self.allow_dtype_widening == "on", self.allow_new_groups == "on"

    def assignment(self, graph: SpmdGraph, line: str) -> PartialAssignment:
        match = PARTIAL.fullmatch(line)
        if match is None:
            raise CaseError(f"ASSIGN {line!r} does not list values that are Partial")
        collective, kind, group = match.groups()[1:]
        if group is None:
            (only,) = reductions(graph)
            collective, kind, group = only.collective, only.kind, only.group
        scatters = collective == Kind.REDUCE_SCATTER
        values = numbers_in(match[1])
        return reduction_assignment(
            graph, Stage(group, kind, values, (), 0, 0, scatters, *self.allowed)
        )

    def kept(self, graph: SpmdGraph) -> Sequence[PartialAssignment]:
        every = [reduction_facts(graph, each, *self.allowed) for each in reductions(graph)]
        return [
            PartialAssignment(
                facts,
                frozenset(n for n, v in partial_values(facts).items() if v.addend or v.reduces),
            )
            for facts in every
        ]


@dataclass(frozen=True)
class AssignedRows:
    """shard-rows by the lines of a case."""

    name: ClassVar[str] = "shard-rows"
    assign: tuple[str, ...]

    def apply(self, graph: SpmdGraph) -> PassResult:
        (line,) = self.assign
        match = SHARDS.fullmatch(line)
        if match is None:
            raise CaseError(f"ASSIGN {line!r} does not list values that are shards")
        stage = RowStage(match[3], numbers_in(match[1]), 0, 0, numbers_in(match[2] or ""))
        return ShardRows(row_assignment(graph, stage)).apply(graph)


def numbers_in(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))
