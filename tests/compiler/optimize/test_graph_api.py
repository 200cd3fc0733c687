"""The public functions on graphs made by hand: what comes back, what is refused and how."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import fx

import compiler.optimize.optimizer
import compiler.plan.planner
from compiler.check import Report, Verdict
from compiler.cost import MachineError, machines
from compiler.errors import CommPlanError, GraphError, MeshError, PlacementError, VerificationError
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Shard, Varying
from compiler.ir.remark import RemarkKind
from compiler.ir.text import print_graph
from compiler.optimize import check_equivalence, optimize_graph
from passes import EliminateDeadCode, PlaceReductions
from tests.compiler.optimize.optimized import optimized
from tests.support.graphs import Builder, agree, aten, function

XY = '%0 "x": f64[4, 8] {tp: V}, %1 "y": f64[4, 8] {tp: V}'
SUM = "{axis = tp, op = sum}"


def two_branches() -> SpmdGraph:
    return function(
        XY,
        f"%2: f64[4, 8] = comm.all_reduce(%0) {SUM}",
        f"%3: f64[4, 8] = comm.all_reduce(%1) {SUM}",
        "%4: f64[4, 8] = aten.add.Tensor(%2, %3)",
        "return %4",
    )


def test_result() -> None:
    graph = two_branches()
    before = print_graph(graph)
    result = optimized(graph)
    assert print_graph(graph) == before
    assert result.graph_module is not graph.module
    assert isinstance(result.graph_module, fx.GraphModule)
    assert result.graph_module.graph.nodes is not graph.graph.nodes
    assert (result.verdict, result.before.all_reduces, result.after.all_reduces) == (
        Verdict.EQUIVALENT,
        2,
        1,
    )
    assert (result.before.payload_bytes, result.after.payload_bytes) == (512, 256)
    assert [record.name for record in result.records] == [
        "canonicalize", "canonicalize-slices", "eliminate-dead-code", "regroup-sums",
        "place-reductions", "eliminate-dead-code",
    ]  # fmt: skip
    assert list(result.seconds) == ["canonicalize", "plan", "rewrite", "check"]
    assert [str(r) for r in result.remarks] == [
        "passed: %v2: all_reduce moved below aten.add.Tensor",
        "passed: %v3: all_reduce moved below aten.add.Tensor",
    ]
    assert agree(graph, result.spmd)


def test_optimizing_again_changes_nothing() -> None:
    once = optimized(two_branches())
    again = optimized(once.spmd)
    assert print_graph(again.spmd) == print_graph(once.spmd)
    assert again.verdict is Verdict.IDENTICAL


def test_equal_graphs_have_equal_plans() -> None:
    plans = [optimized(two_branches()).plan for _ in range(2)]
    assert plans[0] == plans[1]
    assert plans[0].digest == plans[1].digest


def test_policies() -> None:
    hoisted = function(
        '%0 "x": f64[1, 8] {tp: V}',
        "%1: f64[4, 8] = aten.expand(%0, [4, 8])",
        f"%2: f64[4, 8] = comm.all_reduce(%1) {SUM}",
        "return %2",
    )
    payloads = {p: optimized(hoisted, policy=p).after.payload_bytes for p in ("cost", "merge")}
    assert payloads == {"cost": 64, "merge": 256}
    for graph in (hoisted, two_branches()):
        off = optimized(graph, policy="off")
        assert print_graph(off.spmd) == print_graph(graph)
        assert off.plan.stages == ()
        assert [str(r) for r in off.remarks] == [
            "note: policy 'off': reductions stay where they are"
        ]
    assert optimized(two_branches(), policy="merge").after.all_reduces == 1


def parameters() -> SpmdGraph:
    held = {"w": torch.eye(4, dtype=torch.float64), "b": torch.ones(4, dtype=torch.float64)}
    build = Builder(Mesh({"tp": 2}), held)
    x = build.input("x", 2, 4, varies=("tp",))
    w, b = build.attribute("w", varies=("tp",)), build.attribute("b")
    summed = build.all_reduce(build.call(aten.mm.default, x, w))
    scaled = build.call(aten.mul.Tensor, summed, b)
    other = build.all_reduce(x)
    return build.finish(build.call(aten.add.Tensor, scaled, other))


def test_parameters_are_shared_and_differ_between_ranks_unless_said_otherwise() -> None:
    graph = parameters()
    result = optimized(graph)
    assert result.after.all_reduces == 1
    assert dict(result.graph_module.named_buffers())["w"] is dict(graph.root.named_buffers())["w"]
    unknown = optimize_graph(graph.module, mesh=graph.mesh, inputs={"x": Varying()})
    assert unknown.after.all_reduces == 2
    assert (
        "missed: %wait_tensor_default: all_reduce kept: aten.mul.Tensor depends on %b, "
        "which differs between ranks" in [str(r) for r in unknown.remarks]
    )


GRID = 'mesh <dp = 2, tp = 2>\ngroup "both" = <dp, tp>'


def grid(first: str, second: str) -> SpmdGraph:
    return function(
        '%0 "x": f64[4] {dp: V, tp: V}, %1 "y": f64[4] {dp: V, tp: V}',
        f"%2: f64[4] = comm.all_reduce(%0) {{{first}}}",
        f"%3: f64[4] = comm.all_reduce(%1) {{{second}}}",
        "%4: f64[4] = aten.add.Tensor(%2, %3)",
        "return %4",
        mesh=GRID,
    )


@pytest.mark.parametrize(
    ("first", "second", "left"),
    [
        ("axis = tp, op = sum", "axis = tp, op = sum", 1),
        ("axis = dp, op = avg", "axis = dp, op = avg", 1),
        ('group = "both", op = sum', 'group = "both", op = sum', 1),
        ("axis = tp, op = sum", "axis = dp, op = sum", 2),
        ("axis = tp, op = sum", 'group = "both", op = sum', 2),
        ("axis = tp, op = sum", "axis = tp, op = avg", 2),
        ("axis = tp, op = max", "axis = tp, op = max", 2),
    ],
)
def test_groups_and_kinds_that_merge(first: str, second: str, left: int) -> None:
    result = optimized(grid(first, second))
    assert result.after.all_reduces == left
    assert result.verdict is (Verdict.EQUIVALENT if left == 1 else Verdict.IDENTICAL)


def test_casts_are_not_crossed() -> None:
    widens = "widens bfloat16 to float32, and widen is off; with it, %v2 and %v4 would meet in %v5"
    narrows = "changes the element type from float32 to bfloat16"
    for narrow, wide, why in (("bf16", "f32", widens), ("f32", "bf16", narrows)):
        graph = function(
            f'%0 "x": {narrow}[4] {{tp: V}}, %1 "y": {wide}[4] {{tp: V}}',
            f"%2: {narrow}[4] = comm.all_reduce(%0) {SUM}",
            f"%3: {wide}[4] = aten._to_copy(%2, dtype = {wide})",
            f"%4: {wide}[4] = comm.all_reduce(%1) {SUM}",
            f"%5: {wide}[4] = aten.add.Tensor(%3, %4)",
            "return %5",
        )
        result = optimized(graph)
        assert result.after.all_reduces == 2
        assert str(result.remarks[0]) == (
            f"missed: %v2: all_reduce kept: aten._to_copy.default {why}"
        )


def test_replicated_addend_is_not_counted_once_per_rank() -> None:
    graph = function(
        XY + ', %2 "r": f64[4, 8]',
        f"%3: f64[4, 8] = comm.all_reduce(%0) {SUM}",
        "%4: f64[4, 8] = aten.add.Tensor(%3, %2)",
        f"%5: f64[4, 8] = comm.all_reduce(%1) {SUM}",
        "%6: f64[4, 8] = aten.add.Tensor(%4, %5)",
        "return %6, %4",
    )
    result = optimized(graph)
    assert agree(graph, result.spmd)
    assert (
        "missed: %v3: all_reduce kept: aten.add.Tensor adds %r, which is not a partial sum"
    ) in map(str, result.remarks)


@torch.library.custom_op("commplan_tests::norm", mutates_args=())
def norm(x: torch.Tensor) -> torch.Tensor:
    return x / x.square().mean(-1, keepdim=True).sqrt()


@norm.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def test_op_without_a_rule_is_left_alone_and_reported() -> None:
    graph = function(
        XY,
        f"%2: f64[4, 8] = comm.all_reduce(%0) {SUM}",
        "%3: f64[4, 8] = commplan_tests.norm(%2)",
        f"%4: f64[4, 8] = comm.all_reduce(%1) {SUM}",
        "%5: f64[4, 8] = aten.add.Tensor(%3, %4)",
        "return %5",
    )
    result = optimized(graph)
    assert (result.verdict, result.after.all_reduces) == (Verdict.IDENTICAL, 2)
    assert [str(r) for r in result.remarks] == [
        "note: ops without a rule, left alone: commplan_tests.norm.default",
        "missed: %v2: all_reduce kept: commplan_tests.norm.default has no rule",
        "missed: %v4: all_reduce kept: aten.add.Tensor adds %v3, which is not a partial sum",
    ]


def test_world_of_one_rank() -> None:
    graph = function(
        '%0 "x": f64[4]',
        f"%1: f64[4] = comm.all_reduce(%0) {SUM}",
        "%2: f64[4] = aten.silu(%1)",
        "return %2",
        mesh="mesh <tp = 1>",
    )
    result = optimized(graph)
    assert (result.verdict, result.after.counts) == (Verdict.EQUIVALENT, {})
    assert [str(r) for r in result.remarks] == [
        "note: world size 1: no rank owes another a sum, nothing to optimize",
        "passed: %v1: all_reduce over groups of one rank removed",
    ]


def test_graph_without_collectives() -> None:
    graph = function('%0 "x": f64[4]', "%1: f64[4] = aten.neg(%0)", "return %1")
    result = optimized(graph)
    assert result.verdict is Verdict.IDENTICAL
    assert [str(r) for r in result.remarks] == [
        "note: the graph has no collectives, nothing to optimize"
    ]


def test_symbolic_sizes() -> None:
    graph = function(
        '%0 "x": f64[s0, 8] {tp: V}, %1 "y": f64[s0, 8] {tp: V}',
        f"%2: f64[s0, 8] = comm.all_reduce(%0) {SUM}",
        f"%3: f64[s0, 8] = comm.all_reduce(%1) {SUM}",
        "%4: f64[s0, 8] = aten.add.Tensor(%2, %3)",
        "%5: f64[8*s0] = aten.view(%4, [-1])",
        "return %5",
        mesh="mesh <tp = 4>\nsym s0 in [2, 64]",
    )
    result = optimized(graph, tokens=5)
    assert (result.verdict, result.plan.tokens) == (Verdict.EQUIVALENT, 5)
    assert (result.before.payload_bytes, result.after.payload_bytes) == (640, 320)


def test_without_verification_nothing_is_proved() -> None:
    result = optimized(two_branches(), verify=False)
    assert (result.verdict, result.report) == (Verdict.UNPROVED, None)
    assert str(result.remarks[0]) == "note: verification was switched off: the graph is unproved"
    assert result.remarks[0].kind is RemarkKind.NOTE


def test_observers_and_bisection() -> None:
    seen: list[str] = []
    optimized(two_branches(), observers=[lambda record: seen.append(record.name)])
    assert seen == ["canonicalize", "canonicalize-slices", "eliminate-dead-code", "regroup-sums",
                    "place-reductions", "eliminate-dead-code"]  # fmt: skip
    assert optimized(two_branches(), bisect_limit=4).after.all_reduces == 2
    assert optimized(two_branches(), bisect_limit=5).after.all_reduces == 1


def test_wrong_rewrite_is_withdrawn_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass(frozen=True)
    class Wrong(PlaceReductions):
        def apply(self, graph: SpmdGraph) -> object:  # type: ignore[override]
            result = super().apply(graph)
            (wait, *_) = [n for n in result.graph.graph.nodes if "wait" in str(n.target)]
            wait.replace_all_uses_with(wait.args[0].args[0])
            return result

    monkeypatch.setattr(compiler.plan.planner, "PLACING", (Wrong, EliminateDeadCode))
    result = optimized(two_branches())
    assert (result.verdict, result.after.all_reduces, result.plan.stages) == (
        Verdict.IDENTICAL, 2, (),
    )  # fmt: skip
    start = "place-reductions withdrawn: the graph would be NOT_EQUIVALENT: output 0 on rank 0"
    assert any(remark.reason.startswith(start) for remark in result.remarks)


def test_source_that_is_not_shown_to_be_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    unproved = Report(Verdict.UNPROVED, "nobody knows")
    monkeypatch.setattr(compiler.optimize.optimizer, "check", lambda source, target: unproved)
    with pytest.raises(VerificationError) as caught:
        optimized(two_branches())
    assert str(caught.value) == (
        "the rewritten graph is UNPROVED: nothing was optimized\n"
        "  found: nobody knows\n"
        "  remedy: report this; policy='off' leaves the graph as it is"
    )


def test_rows_are_not_shared_where_that_cannot_be_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    build = Builder(Mesh({"tp": 2}))
    own = build.input("own", 2, 4, varies=("tp",))
    x = build.call(aten.silu.default, build.all_gather(own))
    graph = build.finish(build.all_gather(build.call(aten.neg.default, own)), x)
    assert optimized(graph).plan.rows
    real = compiler.optimize.optimizer.check

    def doubtful(source: SpmdGraph, target: SpmdGraph) -> Report:
        found = real(source, target)
        same = found.verdict is Verdict.IDENTICAL
        return found if same else dataclasses.replace(found, verdict=Verdict.UNPROVED)

    monkeypatch.setattr(compiler.optimize.optimizer, "check", doubtful)
    result = optimized(graph)
    assert not result.plan.rows
    assert result.verdict.runs
    (missed,) = [r for r in result.remarks if r.kind is RemarkKind.MISSED]
    assert missed.reason.startswith("shard-rows withdrawn: the graph would be UNPROVED")


def test_rows_that_cannot_be_shared_again_stay_as_the_author_shares_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = function(
        '%0 "x": f64[8, 4] {tp: V}, %1 "y": f64[8, 4] {tp: V}',
        f"%2: f64[2, 4] = comm.reduce_scatter(%0) {SUM}",
        f"%3: f64[2, 4] = comm.reduce_scatter(%1) {SUM}",
        "%4: f64[2, 4] = aten.add.Tensor(%2, %3)",
        "%5: f64[2, 4] = aten.silu(%4)",
        "%6: f64[8, 4] = comm.all_gather(%5) {axis = tp}",
        "return %6",
        mesh="mesh <tp = 4>",
    )
    assert optimized(graph).after.counts == {"reduce_scatter": 1, "all_gather": 1}
    real = compiler.optimize.optimizer.check

    def doubtful(source: SpmdGraph, target: SpmdGraph) -> Report:
        found = real(source, target)
        scatters = "reduce_scatter" in print_graph(target)
        sure = found.verdict is Verdict.IDENTICAL or not scatters
        return found if sure else dataclasses.replace(found, verdict=Verdict.UNPROVED)

    monkeypatch.setattr(compiler.optimize.optimizer, "check", doubtful)
    result = optimized(graph)
    assert result.verdict is Verdict.IDENTICAL
    withdrawn = [r.reason.split()[0] for r in result.remarks if " withdrawn: " in r.reason]
    assert withdrawn == ["place-reductions", "shard-rows"]


def test_errors() -> None:
    graph, mesh = two_branches(), Mesh({"tp": 4})
    cases = [
        ({"machine": "abacus"}, MachineError,
         f"no machine 'abacus'\n  found: known machines: {', '.join(machines())}\n  remedy: "
         "name one of these or a .json file written by commplan machine measure"),
        ({"launch": "twice"}, CommPlanError,
         "unknown launch\n  found: 'twice'\n  remedy: one of eager, graph"),
        ({"policy": "best"}, CommPlanError,
         "unknown policy\n  found: 'best'\n  remedy: one of cost, merge, boundary, off"),
        ({"mesh": Mesh({"dp": 4})}, MeshError,
         "group name 'tp' does not resolve\n  found: the mesh knows ['dp']\n"
         "  remedy: name its ranks, for example those of an axis: "
        "Mesh(…, groups={'tp': 'dp'}), or --group tp=dp"),
        ({"inputs": {"z": Varying()}}, PlacementError,
         "inputs= names ['z'], which the graph does not read\n  found: its inputs are ['x', 'y']\n"
         "  remedy: name arguments, placeholders or state_dict keys; * stands for one part of a "
         "dotted name"),
        ({"inputs": {"x": Shard(2)}}, PlacementError,
         "the placement of 'x' shards a dimension it does not have\n"
         "  found: dimension 2 of a tensor of 2 dimensions\n"
         "  remedy: count dimensions from 0"),
        *(({"tokens": tokens}, CommPlanError,
           f"tokens= must be a count of tokens\n  found: {tokens!r}\n"
           "  remedy: an integer of >= 1, or None") for tokens in (-1, 0, "5", 1.5, True)),
        *(({"bisect_limit": limit}, CommPlanError,
           f"bisect_limit= must be a number of passes\n  found: {limit!r}\n"
           "  remedy: an integer of >= 0, or None") for limit in (-1, "1", 1.5, True)),
        *(({"observers": observers}, CommPlanError,
           f"observers= must be a sequence of functions\n  found: {observers!r}\n"
           "  remedy: functions of one PassRecord, as in observers=[print]")
          for observers in ([3], None, print)),
    ]  # fmt: skip
    for options, kind, text in cases:
        with pytest.raises(kind) as caught:
            optimize_graph(graph.module, **{"mesh": mesh, **options})  # type: ignore[arg-type]
        assert str(caught.value) == text


def test_ill_formed_graphs_are_errors_of_optimize_and_verdicts_of_check() -> None:
    def module(*, complete: bool) -> fx.GraphModule:
        build = Builder(Mesh({"tp": 2}))
        x = build.input("x", 4)
        node = build.graph.call_function(aten.neg.default, (x,))
        node.meta = dict(x.meta) if complete else {}
        build.graph.output((node,))
        return fx.GraphModule(build.root, build.graph)

    mesh, whole, bare = Mesh({"tp": 2}), module(complete=True), module(complete=False)
    text = (
        "value %neg_default has no meta['val']\n"
        "  where: %neg_default : [num_users=1] = call_function[target=torch.ops.aten.neg.default]"
        "(args = (%x,), kwargs = {})\n"
        "  remedy: set meta['val'] to a tensor of its shape and dtype on every node, "
        "for example with torch.fx.passes.fake_tensor_prop.FakeTensorProp"
    )
    with pytest.raises(GraphError) as caught:
        optimize_graph(bare, mesh=mesh)
    assert str(caught.value) == text
    report = check_equivalence(whole, bare, mesh=mesh)
    assert (report.verdict, report.explanation) == (Verdict.INVALID, f"target: {text}")


def test_graph_that_mutates_is_refused() -> None:
    build = Builder(Mesh({"tp": 2}))
    x = build.input("x", 4)
    graph = build.finish(build.call(aten.neg_.default, x))
    with pytest.raises(GraphError) as caught:
        optimized(graph)
    assert str(caught.value) == (
        "op aten.neg_.default of value %neg__default mutates its operand\n"
        "  remedy: functionalize: pass the ExportedProgram itself, whose written tensors are "
        "outputs, not its .module()"
    )


def test_a_sum_of_what_is_the_same_on_all_ranks_is_kept_with_the_reason() -> None:
    """So it looks where an export has lifted parameters to placeholders: those are Replicate."""
    same = XY.replace("tp: V", "tp: R")
    sums = (
        f"%2: f64[4, 8] = comm.all_reduce(%0) {SUM}",
        f"%3: f64[4, 8] = comm.all_reduce(%1) {SUM}",
    )
    result = optimized(
        function(same, *sums, "%4: f64[4, 8] = aten.add.Tensor(%2, %3)", "return %4")
    )
    assert (result.verdict, result.after.all_reduces) == (Verdict.IDENTICAL, 2)
    assert [r.kind for r in result.remarks] == [RemarkKind.MISSED] * 2
    assert {r.reason for r in result.remarks} == {
        "all_reduce kept: by the placements of the graph's inputs its operand is the same on every "
        "rank; declare inputs that differ in inputs= (--input)"
    }
