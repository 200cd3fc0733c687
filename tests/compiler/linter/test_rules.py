"""Further cases of the rules; docs/lint.md has one example of each."""

from __future__ import annotations

import pytest
import torch

from compiler.ir import access
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Partial
from compiler.linter import Severity, findings
from compiler.linter.facts import LintFacts
from tests.support.graphs import Builder, function

SUM = "{axis = tp, op = sum}"
P = '%0 "x": f64[4, 8] {tp: P}'


def found(*lines: str, mesh: str = "mesh <tp = 4>") -> list[tuple[str, str]]:
    return [(one.rule, one.value) for one in findings(function(*lines, mesh=mesh))]


@pytest.mark.parametrize(
    ("lines", "rule"),
    [
        (["%1: f64[4, 8] = aten.mul.Tensor(%0, %0)"], "nonlinear-on-partial"),
        (["%1: f64[4, 8] = aten.reciprocal(%0)"], "nonlinear-on-partial"),
        (["%1: (f64[4, 2], i64[4, 2]) = aten.topk(%0, 2)"], "nonlinear-on-partial"),
        (["%1: f64[4, 8] = aten._softmax(%0, 1, false)"], "nonlinear-on-partial"),
        (["%1: i64[4, 8] = aten._to_copy(%0, dtype = i64)"], "nonlinear-on-partial"),
        (["%1: f64[4, 8] = aten.add.Tensor(%0, 1)"], "missing-reduction"),
        (["%1: f64[4, 8] = comm.broadcast(%0) {axis = tp, src = 0}"], "gathers-partial"),
        (["%1: f64[4, 8] = comm.all_reduce(%0) {axis = tp, op = avg}"], "wrong-kind"),
        (["%1: f64[4, 8] = comm.all_reduce(%0) {axis = tp, op = min}"], "wrong-kind"),
    ],
)  # fmt: skip
def test_uses_of_a_partial_sum(lines: list[str], rule: str) -> None:
    assert found(P, *lines, "return %1") == [(rule, "%1")]


def test_casts_keep_a_partial_sum() -> None:
    lines = ("%1: bf16[4, 8] = aten._to_copy(%0, dtype = bf16)", "%2: bf16[4, 8] = aten.silu(%1)")
    assert found(P, *lines, "return %2") == [("nonlinear-on-partial", "%2")]


def test_kinds_of_partial_results() -> None:
    inputs = '%0 "x": f64[4] {tp: P}, %1 "m": f64[4] {tp: P(max)}'
    mixed = "%2: f64[4] = aten.add.Tensor(%0, %1)"
    assert found(inputs, mixed, "return %2") == [("wrong-kind", "%2")]
    summed = f"%2: f64[4] = comm.all_reduce(%1) {SUM}"
    assert found(inputs, summed, "return %2") == [("wrong-kind", "%2")]
    right = "%2: f64[4] = comm.all_reduce(%1) {axis = tp, op = max}"
    assert found(inputs, right, "return %2") == []
    assert found(inputs, "return %1") == [("partial-output", "%1")]


def test_a_weight_cut_along_the_contraction_makes_addends_of_what_varies() -> None:
    """As after attention over a cache of which nothing is known."""
    inputs = '%0 "x": f64[4, 6] {tp: V}, %1 "w": f64[6, 8] {tp: S(0)}, %2 "r": f64[4, 8]'
    lines = ("%3: f64[4, 8] = aten.mm(%0, %1)", "%4: f64[4, 8] = aten.add.Tensor(%2, %3)")
    assert found(inputs, *lines, "return %4") == [("missing-reduction", "%4")]


@pytest.mark.parametrize("bias", ["f64[8]", "f64[4, 8]"])
def test_a_bias_inside_a_product_that_is_never_reduced(bias: str) -> None:
    inputs = f'%0 "x": f64[4, 6] {{tp: S(1)}}, %1 "w": f64[6, 8] {{tp: S(0)}}, %2 "b": {bias}'
    lines = ("%3: f64[4, 8] = aten.addmm(%2, %0, %1)", "return %3")
    assert found(inputs, *lines) == [("missing-reduction", "%3")]


def test_the_same_partial_sum_is_reported_once() -> None:
    """And what is computed from it is taken to be whole."""
    lines = (
        "%1: f64[4, 8] = aten.silu(%0)", "%2: f64[4, 8] = aten.tanh(%0)",
        "%3: f64[4, 8] = aten.add.Tensor(%1, %2)", "return %3, %0",
    )  # fmt: skip
    assert found(P, *lines) == [("nonlinear-on-partial", "%1")]


@pytest.mark.parametrize(
    "call",
    ["aten.silu(%0)", "aten.mul.Tensor(%0, %0)", "aten.masked_fill.Scalar(%0, %1, 1.0)"],
)
def test_a_reduction_after_the_mistake_is_not_another(call: str) -> None:
    """The ranks hold different values until then: nothing is multiplied."""
    inputs = f'{P}, %1 "m": b8[4, 8]'
    lines = (f"%2: f64[4, 8] = {call}", f"%3: f64[4, 8] = comm.all_reduce(%2) {SUM}")
    mistake = ("nonlinear-on-partial", "%2")
    assert found(inputs, *lines, "return %3") == [mistake]
    again = f"%4: f64[4, 8] = comm.all_reduce(%3) {SUM}"
    assert found(inputs, *lines, again, "return %4") == [mistake, ("double-reduction", "%4")]


def test_a_shard_after_the_mistake_meets_nothing_whole() -> None:
    inputs = f'{P}, %1 "w": f64[4, 8] {{tp: S(0)}}'
    lines = ("%2: f64[4, 8] = aten.silu(%0)", "%3: f64[4, 8] = aten.mul.Tensor(%2, %1)")
    assert found(inputs, *lines, "return %3") == [("nonlinear-on-partial", "%2")]


def test_each_missing_reduction_is_reported() -> None:
    inputs = '%0 "x": f64[4, 8], %1 "a": f64[4, 8] {tp: P}, %2 "b": f64[4, 8] {tp: P}'
    lines = ("%3: f64[4, 8] = aten.add.Tensor(%0, %1)", "%4: f64[4, 8] = aten.add.Tensor(%3, %2)")
    wanted = [("missing-reduction", "%3"), ("missing-reduction", "%4")]
    assert found(inputs, *lines, "return %4") == wanted


def test_dead_code_is_not_reported() -> None:
    assert found(P, "%1: f64[4, 8] = aten.silu(%0)", f"%2: f64[4, 8] = comm.all_reduce(%0) {SUM}",
                 "return %2") == []  # fmt: skip


def test_constants_count_only_beside_known_partial_sums() -> None:
    lines = ("%1: f64[4, 8] = aten.add.Tensor(%0, 1)",
             f"%2: f64[4, 8] = comm.all_reduce(%1) {SUM}", "return %2")  # fmt: skip
    assert found(P, *lines) == [("replicated-term", "%1")]
    assert found(P.replace("P}", "V}"), *lines) == []


def test_groups_that_are_no_product_of_axes() -> None:
    mesh = 'mesh <dp = 2, tp = 2>\ngroup "odd" = [[0, 3], [1, 2]]'
    twice = ('%1: f64[4] = comm.all_reduce(%0) {group = "odd", op = sum}',
             '%2: f64[4] = comm.all_reduce(%1) {group = "odd", op = sum}', "return %2")  # fmt: skip
    held = '%0 "x": f64[4] {dp: V, tp: V}'
    assert found(held, *twice, mesh=mesh) == [("double-reduction", "%2")]
    joined = (
        twice[0],
        "%2: f64[4] = aten.add.Tensor(%0, %1)",
        '%3: f64[4] = comm.all_reduce(%2) {group = "odd", op = sum}',
        "return %3",
    )
    assert found(held, *joined, mesh=mesh) == [("replicated-term", "%2")]


def test_a_group_that_is_too_wide() -> None:
    mesh = 'mesh <dp = 2, tp = 2>\ngroup "world" = <dp, tp>'
    lines = ('%1: f64[4] = comm.all_reduce(%0) {group = "world", op = sum}', "return %1")
    assert found('%0 "x": f64[4] {dp: R, tp: P}', *lines, mesh=mesh) == [("wrong-group", "%1")]
    assert found('%0 "x": f64[4] {dp: P, tp: P}', *lines, mesh=mesh) == []


def test_products_of_equal_values() -> None:
    graph = function('%0 "x": f64[4]', "%1: f64[4] = comm.all_reduce(%0) {axis = tp, op = product}",
                     "return %1")  # fmt: skip
    (one,) = findings(graph)
    assert "it is taken to the power of 4" in one.problem


@pytest.mark.parametrize(
    "lines",
    [
        ["%2: f64[2, 8] = aten.narrow(%1, 0, 2, 2)", "return %2"],
        ["%2: f64[4, 2, 8] = aten.view(%1, [4, 2, 8])",
         "%3: f64[2, 8] = aten.select.int(%2, 0, 1)", "return %3"],
    ],
)  # fmt: skip
def test_ways_to_use_one_block_of_a_gather(lines: list[str]) -> None:
    gather = "%1: f64[8, 8] = comm.all_gather(%0) {axis = tp}"
    graph = function('%0 "x": f64[2, 8] {tp: S(0)}', gather, *lines)
    (one,) = findings(graph)
    assert (one.rule, "only block 1 is used" in one.problem) == ("unused-chunks", True)


def test_unused_collectives_are_warnings() -> None:
    graph = function('%0 "x": f64[4] {tp: V}', f"%1: f64[4] = comm.all_reduce(%0) {SUM}",
                     "%2: f64[4] = aten.neg(%1)", "return %0")  # fmt: skip
    (one,) = findings(graph)
    assert (one.rule, one.severity) == ("unused-collective", Severity.WARNING)


def test_of_several_counts_the_first_read_is_named() -> None:
    counts = range(8)
    total = " + ".join(f"u{i}" for i in counts)
    read = [
        line
        for i in counts
        for line in (
            f"%{2 * i + 1}: i64[8] = aten.select.int(%0, 0, {i})",
            f"%{2 * i + 2}: i64[u{7 - i}, 1] = aten.nonzero(%{2 * i + 1})",
        )
    ]
    graph = function(
        '%0 "n": i64[8, 8] {tp: V}',
        *read,
        f"%17: i64[{total}, 1] = aten.cat([{', '.join(f'%{2 * i + 2}' for i in counts)}])",
        f"%18: i64[{total}, 1] = comm.all_reduce(%17) {SUM}",
        "return %18",
        mesh="mesh <tp = 4>\n" + "\n".join(f"sym u{i} in [0, 8]" for i in counts),
    )  # fmt: skip
    (problem,) = [one.problem for one in findings(graph) if one.rule == "rank-dependent-size"]
    assert "a size that %2 = aten.nonzero reads" in problem


def test_factors_of_a_value_are_those_of_one_way_to_it() -> None:
    squares = range(0, 36, 3)
    lines = [line for i in squares for line in (
        f"%{i + 1}: f64[4] = aten.neg(%{i})",
        f"%{i + 2}: f64[4] = aten.mul.Tensor(%{i}, 2.0)",
        f"%{i + 3}: f64[4] = aten.mul.Tensor(%{i + 1}, %{i + 2})",
    )]  # fmt: skip
    graph = function('%0 "x": f64[4]', *lines, "return %36")
    (last,) = access.results(access.output(graph.graph))
    steps = [node.name for node, *_ in LintFacts(graph).linear_past(last)]
    doubled = [f"v{i + step}" for i in reversed(squares) for step in (3, 2)]
    assert steps == [*doubled, *(f"v{i + 1}" for i in squares)]


def built(send: object) -> SpmdGraph:
    build = Builder(Mesh({"tp": 2}))
    x = build.input("x", 4)
    build.inputs["x"] = {"tp": Partial()}
    sent = build.graph.call_function(send, (x, 1, 0, "pp"))
    sent.meta["val"] = x.meta["val"]
    return build.finish(build.all_reduce(x))


@pytest.mark.skipif(not hasattr(torch.ops._c10d_functional, "isend"), reason="this torch has none")
def test_what_a_pipeline_stage_sends() -> None:
    (one,) = findings(built(torch.ops._c10d_functional.isend.default))
    assert (one.rule, one.value) == ("partial-output", "%0")
    assert "isend" in one.problem


def test_written_back() -> None:
    graph = function('%0 "cache": f64[4], %1 "x": f64[4] {tp: P}', "return %1")
    (one,) = findings(graph, {0: "cache"})
    assert "output 0 writes it back to 'cache'" in one.problem


def test_a_mean_of_as_many_columns_as_ranks_is_no_share_of_the_ranks() -> None:
    inputs = '%0 "x": f64[4, 1] {tp: P}, %1 "b": f64[4, 4]'
    lines = ("%2: f64[4, 1] = aten.mean.dim(%1, [1], true)",
             "%3: f64[4, 1] = aten.add.Tensor(%0, %2)",
             f"%4: f64[4, 1] = comm.all_reduce(%3) {SUM}")  # fmt: skip
    assert found(inputs, *lines, "return %4") == [("replicated-term", "%3")]
