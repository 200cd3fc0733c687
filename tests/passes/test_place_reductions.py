"""What the pass does with an assignment, as text, and every reason that it gives."""

from __future__ import annotations

import pytest
import torch

from compiler.analysis.reductions import reduction_facts, reductions
from compiler.check import Verdict, check
from compiler.check.simulate import draw_inputs, simulate
from compiler.errors import PlanError
from compiler.ir.collectives import collectives
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import Mesh
from compiler.ir.remark import PassResult
from compiler.ir.text import print_graph
from compiler.plan.reduction_cut import place_reductions
from passes import EliminateDeadCode, PlaceReductions
from tests.support.graphs import Builder, agree, aten, function
from tests.support.random_graphs import LINEAR, seeded
from tests.support.seeds import share

XY = '%0 "x": f64[4, 8] {tp: V}, %1 "y": f64[4, 8] {tp: V}'
SUM = "{axis = tp, op = sum}"


def cheapest(graph: SpmdGraph, index: int = 0) -> PlaceReductions:
    return PlaceReductions(place_reductions(reduction_facts(graph, reductions(graph)[index])))


def applied(graph: SpmdGraph) -> PassResult:
    """The result; what every application must obey is asserted here."""
    before = print_graph(graph)
    result = cheapest(graph).apply(graph)
    assert print_graph(graph) == before
    assert result.changed == (result.graph is not graph)
    assert check(graph, result.graph).verdict.runs
    again = cheapest(result.graph).apply(result.graph)
    assert print_graph(EliminateDeadCode().apply(again.graph).graph) == print_graph(
        EliminateDeadCode().apply(result.graph).graph
    )
    return result


def remarks(result: PassResult) -> list[str]:
    return [str(remark) for remark in result.remarks]


def test_merges() -> None:
    graph = function(
        XY,
        f"%2: f64[4, 8] = comm.all_reduce(%0) {SUM}",
        f"%3: f64[4, 8] = comm.all_reduce(%1) {SUM}",
        "%4: f64[4, 8] = aten.add.Tensor(%2, %3)",
        "return %4",
    )
    result = applied(graph)
    assert print_graph(result.graph) == (
        "mesh <tp = 4>\n"
        'func @main(%0 "x": f64[4, 8] {tp: V}, %1 "y": f64[4, 8] {tp: V}) {\n'
        "  %2: f64[4, 8] = aten.add.Tensor(%0, %1)\n"
        "  %3: f64[4, 8] = comm.all_reduce(%2) {axis = tp, op = sum}\n"
        "  return %3\n"
        "}\n"
    )
    assert remarks(result) == [
        "passed: %v2: all_reduce moved below aten.add.Tensor",
        "passed: %v3: all_reduce moved below aten.add.Tensor",
    ]


def test_hoists() -> None:
    graph = function(
        '%0 "x": f64[1, 8] {tp: V}',
        "%1: f64[4, 8] = aten.expand(%0, [4, 8])",
        f"%2: f64[4, 8] = comm.all_reduce(%1) {SUM}",
        "return %2",
    )
    result = applied(graph)
    assert print_graph(result.graph) == (
        "mesh <tp = 4>\n"
        'func @main(%0 "x": f64[1, 8] {tp: V}) {\n'
        "  %1: f64[1, 8] = comm.all_reduce(%0) {axis = tp, op = sum}\n"
        "  %2: f64[4, 8] = aten.expand(%1, [4, 8])\n"
        "  return %2\n"
        "}\n"
    )
    assert remarks(result) == ["passed: %v2: all_reduce hoisted above aten.expand.default"]


def test_keeps_an_input_whose_reduction_nothing_reads() -> None:
    graph = function(
        XY,
        f"%2: f64[4, 8] = comm.all_reduce(%0) {SUM}",
        f"%3: f64[4, 8] = comm.all_reduce(%1) {SUM}",
        "%4: f64[8] = aten.sum.dim_IntList(%3, [0])",
        "return %4",
    )
    inputs = [n.name for n in applied(graph).graph.graph.nodes if n.op == "placeholder"]
    assert inputs == ["x", "y"]


def test_a_view_that_strides_forbid_becomes_a_reshape() -> None:
    """Reducing made the author's operand contiguous; what is read in its place is not."""
    build = Builder(Mesh({"tp": 2}))
    x, y = build.input("x", 8, 4, varies=("tp",)), build.input("y", 32, varies=("tp",))
    turned = build.all_reduce(build.call(aten.permute.default, x, [1, 0]))
    turned.meta["val"] = torch.empty(4, 8, dtype=torch.float64, device="meta")
    flat = build.call(aten.view.default, build.call(aten.neg.default, turned), [32])
    graph = build.finish(build.call(aten.add.Tensor, flat, build.all_reduce(y)))
    after = EliminateDeadCode().apply(applied(graph).graph).graph
    ops = [str(n.target) for n in after.graph.nodes if n.op == "call_function"]
    assert ops[:4] == [
        "aten.permute.default", "aten.neg.default", "aten.reshape.default", "aten.add.Tensor"
    ]  # fmt: skip
    negated = next(n for n in after.graph.nodes if n.target is aten.neg.default)
    assert negated.meta["val"].stride() == (1, 4)
    drawn = draw_inputs(graph, 0)
    (got,), held = simulate(after, drawn, exact=True), drawn["x"]
    assert torch.equal(got[0], -(held[0] + held[1]).t().reshape(32) + sum(drawn["y"]))


def test_reductions_that_are_given_their_group_by_name_are_joined() -> None:
    graph = function(
        '%0 "x": f64[4] {dp: V, tp: V}',
        f"%1: f64[4] = comm.all_reduce(%0) {SUM}",
        "%2: f64[4] = comm.all_reduce(%1) {axis = dp, op = sum}",
        "return %2",
        mesh="mesh <dp = 2, tp = 2>",
    )
    for node, found in collectives(graph.graph):
        node.args, node.kwargs = (found.operand, found.op), {"group_name": found.group}
    (joined,) = collectives(EliminateDeadCode().apply(applied(graph).graph).graph.graph)
    assert joined[1].group == "dp*tp"


def test_metadata_goes_along() -> None:
    build = Builder(Mesh({"tp": 2}))
    x, y = (build.input(name, 4, varies=("tp",)) for name in "xy")
    total = build.call(aten.add.Tensor, build.all_reduce(x), build.all_reduce(y))
    total.meta["nn_module_stack"] = {"m": ("layers.0.mlp", object)}
    graph = build.finish(total)
    after = applied(graph).graph
    (output,) = (n for n in after.graph.nodes if n.op == "output")
    for node in output.all_input_nodes[0], *output.all_input_nodes[0].all_input_nodes:
        assert node.meta["nn_module_stack"] == total.meta["nn_module_stack"]
        assert node.meta["val"].shape == (4,)


def op(text: str) -> SpmdGraph:
    """An all_reduce of x whose result %2 the op reads."""
    return function(XY, f"%2: f64[4, 8] = comm.all_reduce(%0) {SUM}", f"%3: {text}", "return %3")


@torch.library.custom_op("commplan_tests::opaque", mutates_args=())
def opaque(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@opaque.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def test_says_that_an_op_has_no_rule() -> None:
    result = applied(op("f64[4, 8] = commplan_tests.opaque(%2)"))
    assert remarks(result) == [
        "missed: %v2: all_reduce kept: commplan_tests.opaque.default has no rule"
    ]


def test_assignment_of_another_graph_is_refused() -> None:
    graph = op("f64[4, 8] = aten.neg(%2)")
    with pytest.raises(PlanError) as caught:
        cheapest(graph).apply(graph.own_copy())
    assert str(caught.value) == (
        "the plan does not fit the graph\n"
        "  where: all_reduce sum over tp\n"
        "  found: an assignment for another graph\n"
        "  remedy: plan again for this graph"
    )


def test_random_graphs() -> None:
    changed = 0
    for seed in range(share(250)):
        graph = seeded(seed) if seed % 3 == 0 else seeded(seed, 10, LINEAR, plain=True)
        before = print_graph(graph)
        for index in range(len(reductions(graph))):
            result = cheapest(graph, index).apply(graph)
            changed += result.changed
            verdict = check(graph, result.graph).verdict
            assert verdict in (Verdict.EQUIVALENT, Verdict.IDENTICAL), seed
            assert agree(graph, result.graph, seeds=(seed,)), seed
            dead = EliminateDeadCode().apply
            same = print_graph(dead(result.graph).graph) == print_graph(dead(graph).graph)
            assert result.changed or same
            named = {n.name for n in graph.graph.nodes}
            assert all(r.value.removeprefix("%") in named for r in result.remarks)
        assert print_graph(graph) == before
    assert changed > share(20)
