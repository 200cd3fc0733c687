"""Assignments as numbers, and back: every plan replays to the graph that was planned."""

from __future__ import annotations

from dataclasses import replace

import pytest

from compiler.errors import PlanError
from compiler.ir.comm_plan import CommPlan, RowStage, Stage
from compiler.ir.graph import SpmdGraph
from compiler.ir.text import print_graph
from compiler.plan.export import reduction_stage, row_stage
from compiler.plan.planner import Planner
from compiler.plan.planner_options import PlannerOptions
from compiler.plan.reduction_cut import place_reductions
from passes import EliminateDeadCode, PlaceReductions, ShardRows
from tests.compiler.plan.labelings import facts_of
from tests.compiler.plan.test_row_cut import authored
from tests.support.graphs import function
from tests.support.machines import machine
from tests.support.random_graphs import LINEAR, seeded
from tests.support.replay import reduction_assignment, row_assignment
from tests.support.seeds import share


def replayed(canonical: SpmdGraph, plan: CommPlan) -> SpmdGraph:
    """The graph after every stage, read off the numbers of the graph before it."""
    graph = canonical
    for stage in (*plan.stages, *plan.rows):
        rewrite = (
            PlaceReductions(reduction_assignment(graph, stage))
            if isinstance(stage, Stage)
            else ShardRows(row_assignment(graph, stage))
        )
        graph = EliminateDeadCode().apply(rewrite.apply(graph).graph).graph
    return graph


def planned(graph: SpmdGraph, options: PlannerOptions, tokens: int | None = None) -> CommPlan:
    """The plan; what must hold of its replay on another copy of the graph is asserted here."""
    planner = Planner(graph, options)
    decision = planner.decide(tokens)
    plan = decision.plan(options.policy, tokens)
    again = replayed(planner.canonical.graph.own_copy(), plan)
    assert print_graph(again) == print_graph(planner.write(decision).graph)
    return plan


def test_random_plans_replay() -> None:
    graphs = [seeded(seed, 14, LINEAR, plain=True) for seed in range(share(120))]
    plans = [planned(graph, PlannerOptions()) for graph in graphs]
    assert sum(len(plan.stages) > 0 for plan in plans) > share(50)


def test_random_plans_of_rows_replay() -> None:
    plans = [planned(authored(seed, 8), PlannerOptions()) for seed in range(share(30))]
    assert sum(len(plan.rows) > 0 for plan in plans) > share(20)


def test_plans_for_a_machine_replay() -> None:
    layers = ["%1: f64[s0, 4] = comm.all_reduce(%0) {axis = tp, op = sum}"]
    for i in range(2, 22, 4):
        layers += [
            f"%{i}: f64[s0, 4] = aten.silu(%{i - 1})",
            f"%{i + 1}: f64[s0, 4] = aten.add.Tensor(%{i}, %{i - 1})",
            f"%{i + 2}: f64[s0, 4] = aten.add.Tensor(%{i + 1}, %0)",
            f"%{i + 3}: f64[s0, 4] = comm.all_reduce(%{i + 2}) {{axis = tp, op = sum}}",
        ]
    mesh = "mesh <tp = 4>\nsym s0 in [2, 65536]"
    graph = function('%0 "x": f64[s0, 4] {tp: V}', *layers, "return %21", mesh=mesh)
    options = PlannerOptions(machine=machine(4))
    assert planned(graph, options, 2).rows == ()
    assert [rows.reduce_scatters for rows in planned(graph, options, 4096).rows] == [5]


def test_assignments_are_those_that_were_exported() -> None:
    for seed in range(share(60)):
        for facts in facts_of(seeded(seed)):
            assignment = place_reductions(facts)
            stage = reduction_stage(assignment)
            assert reduction_assignment(facts.graph, stage) == assignment
            copy = reduction_assignment(facts.graph.own_copy(), stage)
            assert copy != assignment
            assert reduction_stage(copy) == stage


GRAPH = function(
    '%0 "x": f64[4, 8] {tp: V}, %1 "y": f64[4, 8] {tp: V}',
    "%2: f64[4, 8] = comm.all_reduce(%0) {axis = tp, op = sum}",
    "%3: f64[4, 8] = aten.cumsum(%2, 0)",
    "return %3, %1",
)
STAGE = Stage("tp", "sum", (0, 2), (), 1, 256)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"group": "pp"}, "no all_reduce sum over pp"),
        ({"kind": "avg"}, "no all_reduce avg over tp"),
        ({"scatters": True}, "no reduce_scatter sum over tp"),
        ({"unreduced": (0, 1, 2, 99)}, "values [1, 99] cannot be assigned so"),
    ],
)
def test_stages_of_another_graph_are_refused(changes: dict[str, object], found: str) -> None:
    assert reduction_stage(reduction_assignment(GRAPH, STAGE)).unreduced == (0, 2)
    with pytest.raises(PlanError) as caught:
        reduction_assignment(GRAPH, replace(STAGE, **changes))  # type: ignore[arg-type]
    assert str(caught.value) == (
        f"the plan does not fit the graph\n  found: {found}\n  remedy: plan again for this graph"
    )


def test_rows_of_another_graph_are_refused() -> None:
    stage = RowStage("tp", (2,), 1, 1)
    assert row_stage(row_assignment(GRAPH, stage)) == stage
    with pytest.raises(PlanError, match=r"values \[3\] cannot be assigned so"):
        row_assignment(GRAPH, replace(stage, shares=(2, 3)))
