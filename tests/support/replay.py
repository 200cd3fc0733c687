"""Assignments by the numbers of values: of an exported plan, or of a case file."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from compiler.analysis.partial_forms import PartialAssignment
from compiler.analysis.partial_values import partial_values
from compiler.analysis.reductions import reduction_facts, reductions
from compiler.analysis.row_shards import RowAssignment, row_forms
from compiler.errors import PlanError
from compiler.ir.comm_plan import RowStage, Stage
from compiler.ir.graph import SpmdGraph
from compiler.ir.text import numbers


def reduction_assignment(graph: SpmdGraph, stage: Stage) -> PartialAssignment:
    """Return the assignment that ``stage`` states by the numbers of ``graph``.

    Raises:
        PlanError: the graph has no such reduction, or no such values.
    """
    for reduction in reductions(graph):
        if (reduction.group, reduction.kind, reduction.scatters) == (
            stage.group, stage.kind, stage.scatters
        ):  # fmt: skip
            facts = reduction_facts(graph, reduction, stage.widen, stage.join)
            partial = _numbered(graph, partial_values(facts), stage.unreduced)
            return PartialAssignment(facts, partial)
    raise PlanError.misfit(f"no {stage.collective} {stage.kind} over {stage.group}")


def row_assignment(graph: SpmdGraph, stage: RowStage) -> RowAssignment:
    """Return the assignment that ``stage`` states by the numbers of ``graph``.

    Raises:
        PlanError: the graph has no such values.
    """
    shards = _numbered(graph, row_forms(graph, graph.mesh.group(stage.group)), stage.shares)
    dispatched = _numbered(graph, graph.graph.nodes, stage.dispatches)
    return RowAssignment(graph, stage.group, shards, dispatched)


def _numbered(
    graph: SpmdGraph, values: Iterable[fx.Node], stated: Iterable[int]
) -> frozenset[fx.Node]:
    number, wanted = numbers(graph.graph), set(stated)
    chosen = frozenset(node for node in values if number.get(node) in wanted)
    if missing := sorted(wanted - {number[node] for node in chosen}):
        raise PlanError.misfit(f"values {missing} cannot be assigned so")
    return chosen
