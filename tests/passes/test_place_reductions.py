"""What the pass does with a stage, as text, and every reason that it gives."""

from __future__ import annotations

import pytest
import torch

from compiler.analysis.reductions import facts, reductions
from compiler.check import Verdict, check
from compiler.check.simulate import draw_inputs, simulate
from compiler.errors import PlanError
from compiler.ir.collectives import collectives
from compiler.ir.comm_plan import Stage
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import Mesh
from compiler.ir.remark import PassResult
from compiler.ir.text import print_graph
from compiler.plan.reduction_cut import place_reductions
from passes import LOWERING, PLANNING, EliminateDeadCode, PlaceReductions
from tests.support.graphs import Builder, agree, aten, function
from tests.support.random_graphs import LINEAR, rank_int, seeded
from tests.support.seeds import share

XY = '%0 "x": f64[4, 8] {tp: V}, %1 "y": f64[4, 8] {tp: V}'
SUM = "{axis = tp, op = sum}"


def stage_of(graph: SpmdGraph, index: int = 0, *, hoist: bool = True) -> Stage:
    return place_reductions(graph, facts(graph, reductions(graph)[index]), hoist=hoist)


def applied(graph: SpmdGraph) -> PassResult:
    """The result; what every application must obey is asserted here."""
    before = print_graph(graph)
    result = PlaceReductions(stage_of(graph)).apply(graph)
    assert print_graph(graph) == before
    assert result.changed == (result.graph is not graph)
    assert check(graph, result.graph).verdict.runs
    again = PlaceReductions(stage_of(result.graph)).apply(result.graph)
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


def op(text: str, inputs: str = "") -> SpmdGraph:
    """An all_reduce of x whose result %2 the op reads; more inputs start with %9."""
    return function(
        XY + inputs, f"%2: f64[4, 8] = comm.all_reduce(%0) {SUM}", f"%3: {text}", "return %3"
    )


def dropped_rows() -> SpmdGraph:
    build = Builder(Mesh({"tp": 2}))
    summed = build.all_reduce(build.input("x", 4, varies=("tp",)))
    return build.finish(build.call(aten.narrow.default, summed, 0, rank_int(0, 2), 2))


@torch.library.custom_op("commplan_tests::opaque", mutates_args=())
def opaque(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@opaque.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


KEPT = {
    "no rule": (
        op("f64[4, 8] = commplan_tests.opaque(%2)"),
        "commplan_tests.opaque.default has no rule",
    ),
    "cast": (
        op("f32[4, 8] = aten._to_copy(%2, dtype = f32)"),
        "aten._to_copy.default changes the element type from float64 to float32",
    ),
    "nonlinear": (op("f64[4, 8] = aten.silu(%2)"), "aten.silu.default is not linear"),
    "rank constant": (
        dropped_rows(),
        "aten.narrow.default takes a number that depends on the rank",
    ),
    "divisor": (
        op("f64[4, 8] = aten.div.Tensor(%1, %2)"),
        "aten.div.Tensor is not linear in what it depends on",
    ),
    "replicated addend": (
        op("f64[4, 8] = aten.add.Tensor(%2, %9)", ', %9 "r": f64[4, 8]'),
        "aten.add.Tensor adds %r, which is not a partial sum",
    ),
    "constant addend": (
        op("f64[4, 8] = aten.add.Tensor(%2, 1)"),
        "aten.add.Tensor adds a constant, which is not a partial sum",
    ),
    "varying factor": (
        op("f64[4, 8] = aten.mul.Tensor(%2, %1)"),
        "aten.mul.Tensor depends on %y, which differs between ranks",
    ),
    "product": (
        op("f64[4, 8] = aten.mul.Tensor(%2, %2)"),
        "aten.mul.Tensor multiplies partial sums",
    ),
    "returned": (op("f64[4, 8] = aten.neg(%2)"), None),
}


@pytest.mark.parametrize("name", KEPT)
def test_says_why_a_reduction_stays(name: str) -> None:
    graph, why = KEPT[name]
    result = applied(graph)
    assert not result.changed
    first = next(n for n in graph.graph.nodes if n.name in ("v2", "wait_tensor_default"))
    if why is None:
        why = "moving it saves nothing"
    assert remarks(result) == [f"missed: %{first.name}: all_reduce kept: {why}"]


def test_says_that_a_returned_reduction_stays() -> None:
    graph = function(XY, f"%2: f64[4, 8] = comm.all_reduce(%0) {SUM}", "return %2")
    assert remarks(applied(graph)) == ["missed: %v2: all_reduce kept: the graph returns its result"]


def test_says_that_reductions_are_multiplied_or_sent() -> None:
    product = function(
        XY,
        f"%2: f64[4, 8] = comm.all_reduce(%0) {SUM}",
        f"%3: f64[4, 8] = comm.all_reduce(%1) {SUM}",
        "%4: f64[4, 8] = aten.mul.Tensor(%2, %3)",
        "return %4",
    )
    assert remarks(applied(product)) == [
        f"missed: %v{n}: all_reduce kept: aten.mul.Tensor multiplies partial sums" for n in (2, 3)
    ]
    gathered = function(
        XY,
        f"%2: f64[4, 8] = comm.all_reduce(%0) {SUM}",
        "%3: f64[16, 8] = comm.all_gather(%2) {axis = tp}",
        "return %3",
    )
    assert remarks(applied(gathered)) == [
        "missed: %v2: all_reduce kept: all_gather %v3_start sends its result"
    ]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        pytest.param(
            {"group": "pp"},
            "the plan does not fit the graph\n"
            "  found: no all_reduce sum over pp\n"
            "  remedy: plan again for this graph",
            id="group",
        ),
        pytest.param(
            {"kind": "avg"},
            "the plan does not fit the graph\n"
            "  found: no all_reduce avg over tp\n"
            "  remedy: plan again for this graph",
            id="kind",
        ),
        pytest.param(
            {"unreduced": (0, 1, 2, 99)},
            "the plan does not fit the graph\n"
            "  where: stage sum over tp\n"
            "  found: values [99] are not sums over ranks\n"
            "  remedy: plan again for this graph",
            id="values that are no carriers",
        ),
        pytest.param(
            {"unreduced": (0, 1, 4)},
            "the plan does not fit the graph\n"
            "  where: stage sum over tp\n"
            "  found: %v4 is to run unreduced on a reduced operand\n"
            "  remedy: plan again for this graph",
            id="not closed",
        ),
        pytest.param(
            {"unreduced": (0, 2)},
            "the plan does not fit the graph\n"
            "  where: stage sum over tp\n"
            "  found: %y exists unreduced only\n"
            "  remedy: plan again for this graph",
            id="input reduced",
        ),
    ],
)
def test_stage_of_another_graph_is_refused(changes: dict[str, object], text: str) -> None:
    graph = function(
        XY,
        f"%2: f64[4, 8] = comm.all_reduce(%0) {SUM}",
        f"%3: f64[4, 8] = comm.all_reduce(%1) {SUM}",
        "%4: f64[4, 8] = aten.add.Tensor(%2, %3)",
        "return %4",
    )
    fields = {"group": "tp", "kind": "sum", "unreduced": (), "reductions": (), "before": 2}
    stage = Stage(**{**fields, "before_payload_bytes": 0, **changes})  # type: ignore[arg-type]
    with pytest.raises(PlanError) as caught:
        PlaceReductions(stage).apply(graph)
    assert str(caught.value) == text


def test_random_graphs() -> None:
    changed = 0
    for seed in range(share(250)):
        graph = seeded(seed) if seed % 3 == 0 else seeded(seed, 10, LINEAR, plain=True)
        before = print_graph(graph)
        for index in range(len(reductions(graph))):
            result = PlaceReductions(stage_of(graph, index)).apply(graph)
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


def test_registry_names_its_passes_by_their_files() -> None:
    for listed in (*PLANNING, *LOWERING):
        assert listed.__module__ == "passes." + listed.name.replace("-", "_")
        assert listed.__name__ == listed.name.replace("-", " ").title().replace(" ", "")
