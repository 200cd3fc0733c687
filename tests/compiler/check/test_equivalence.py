"""Verdicts with their explanations: what is accepted, what is not, and what is said about it."""

from __future__ import annotations

import pytest
import torch

from compiler.check import Verdict, check
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import Mesh
from compiler.optimize import check_equivalence
from tests.compiler.check.verdicts import SEPARATE, XY, X, reduce, refuted, verdict
from tests.support.graphs import Builder, aten, function, inputs_of
from tests.support.random_graphs import rank_int

GRID = 'mesh <dp = 2, tp = 2>\ngroup "both" = <dp, tp>'
MERGED = function(XY, "%2: f64[4] = aten.add.Tensor(%0, %1)", f"%3: {reduce('%2')}", "return %3")


def test_identical() -> None:
    report = check(SEPARATE, SEPARATE.own_copy())
    assert (report.verdict, report.explanation) == (
        Verdict.IDENTICAL,
        "source and target are the same graph",
    )
    assert report.verdict.runs


def test_equivalent_says_in_which_sense_and_where_rounding_differs() -> None:
    report = check(SEPARATE, MERGED)
    assert (report.verdict, report.explanation, report.roundings) == (
        Verdict.EQUIVALENT,
        "all 1 outputs are the same function of the inputs on each of 4 ranks, over the reals",
        (
            "%v3_start: all_reduce over tp takes aten.add.Tensor of 2 operands: "
            "additions are reassociated",
        ),
    )
    assert report.verdict.runs
    assert report.values == len(SEPARATE.graph.nodes) + len(MERGED.graph.nodes)
    assert report.seconds > 0


def test_not_equivalent_shows_the_inputs() -> None:
    missing = function(XY, f"%2: {reduce('%0')}", "%3: f64[4] = aten.add.Tensor(%2, %1)",
                       "return %3")  # fmt: skip
    report = check(SEPARATE, missing)
    assert report.verdict is Verdict.NOT_EQUIVALENT
    assert refuted(SEPARATE, missing, report)
    assert report.explanation == (
        "output 0 on rank 0 differs by 4.5 (relative) for the inputs of seed 0: "
        "source -0.875, -1, target 3.625, 1.625. First difference: "
        "source %v3 = _c10d_functional.wait_tensor.default(%v3_start) against target %y = y()"
    )
    assert not report.verdict.runs


def test_unproved_names_the_first_difference() -> None:
    source = function(X, "%1: f64[4] = aten.exp(%0)", "%2: f64[4] = aten.mul.Tensor(%1, %1)",
                      "return %2")  # fmt: skip
    target = function(X, "%1: f64[4] = aten.add.Tensor(%0, %0)", "%2: f64[4] = aten.exp(%1)",
                      "return %2")  # fmt: skip
    report = check(source, target)
    assert (report.verdict, report.explanation) == (
        Verdict.UNPROVED,
        "output 0 is not shown equal: source %v2 = aten.mul.Tensor(%v1, %v1) against "
        "target %v2 = aten.exp.default(%v1). No counterexample in 3 simulations",
    )
    assert not report.verdict.runs


def test_inputs_are_placed_as_the_source_says() -> None:
    """A target that does not say where its inputs lie is read as one that says the same."""
    plain, varying = '%0 "x": f64[4]', X
    twice, more = "%1: f64[4] = aten.mul.Tensor(%0, 2)", "%2: f64[4] = aten.add.Tensor(%1, %1)"
    source = function(varying, twice, more, "return %2")
    other = function(plain, "%1: f64[4] = aten.mul.Tensor(%0, 4)", "return %1")
    assert check(source, other).verdict is Verdict.EQUIVALENT
    total = (f"%1: {reduce('%0')}", "return %1")
    assert check(function(plain, *total), other).verdict is Verdict.EQUIVALENT
    assert check(function(varying, *total), other).verdict is Verdict.NOT_EQUIVALENT


def test_what_cancels_out_is_not_called_a_counterexample() -> None:
    zero = function(X, "%1: f64[4] = aten.exp(%0)", "%2: f64[4] = aten.sub.Tensor(%1, %1)",
                    "return %2")  # fmt: skip
    rounding = function(
        X,
        "%1: f64[4] = aten.mul.Tensor(%0, 0.3)",
        "%2: f64[4] = aten.sub.Tensor(%0, %1)",
        "%3: f64[4] = aten.exp(%1)",
        "%4: f64[4] = aten.exp(%2)",
        "%5: f64[4] = aten.mul.Tensor(%3, %4)",
        "%6: f64[4] = aten.exp(%0)",
        "%7: f64[4] = aten.sub.Tensor(%5, %6)",
        "return %7",
    )
    assert verdict(zero, rounding) is Verdict.UNPROVED


def test_inputs_too_large_to_simulate_are_unproved() -> None:
    large = '%0 "x": f64[16777216] {tp: V}'
    source = function(large, "%1: f64[16777216] = aten.neg(%0)", "return %1")
    target = function(large, "%1: f64[16777216] = aten.abs(%0)", "return %1")
    report = check(source, target)
    assert (report.verdict, report.explanation) == (
        Verdict.UNPROVED,
        "output 0 is not shown equal: source %v1 = aten.neg.default(%x) against target %v1 = "
        "aten.abs.default(%x). Not simulated: the inputs of all ranks take 512 MiB",
    )


def attribute(held: float, name: str = "w") -> SpmdGraph:
    build = Builder(Mesh({"tp": 2}), {name: torch.full((4,), held, dtype=torch.float64)})
    x, w = build.input("x", 4), build.attribute(name)
    return build.finish(build.call(aten.mul.Tensor, x, w))


def test_attributes_correspond_by_name_and_must_hold_the_same() -> None:
    assert verdict(attribute(1), attribute(1)) is Verdict.IDENTICAL
    report = check(attribute(1), attribute(2))
    assert (report.verdict, report.explanation) == (
        Verdict.INVALID,
        "attribute 'w' holds another tensor in the target",
    )
    assert verdict(attribute(1), attribute(2, name="v")) is Verdict.NOT_EQUIVALENT
    assert verdict(attribute(1), attribute(1, name="v")) is Verdict.UNPROVED


def rank_slice(*starts: int) -> SpmdGraph:
    build = Builder(Mesh({"tp": 2}))
    x = build.input("x", 4)
    return build.finish(build.call(aten.narrow.default, x, 0, rank_int(*starts), 2))


def test_numbers_that_differ_between_ranks_are_compared_rank_by_rank() -> None:
    assert verdict(rank_slice(0, 2), rank_slice(0, 2)) is Verdict.IDENTICAL
    assert verdict(rank_slice(0, 2), rank_slice(0, 1)) is Verdict.NOT_EQUIVALENT
    build = Builder(Mesh({"tp": 2}))
    plain = build.finish(build.call(aten.narrow.default, build.input("x", 4), 0, 0, 2))
    assert verdict(rank_slice(0, 2), plain) is Verdict.NOT_EQUIVALENT


def test_numbers_that_differ_between_ranks_do_not_cross_a_reduction() -> None:
    def graph(*, early: bool) -> SpmdGraph:
        build = Builder(Mesh({"tp": 2}))
        x, start = build.input("x", 4, varies=("tp",)), rank_int(0, 2)
        if early:
            return build.finish(build.all_reduce(build.call(aten.narrow.default, x, 0, start, 2)))
        return build.finish(build.call(aten.narrow.default, build.all_reduce(x), 0, start, 2))

    assert verdict(graph(early=False), graph(early=True)) is Verdict.NOT_EQUIVALENT


def test_names_of_size_symbols_do_not_matter() -> None:
    def graph(symbol: str) -> SpmdGraph:
        return function(
            f'%0 "x": f64[{symbol}, 4] {{tp: V}}, %1 "y": f64[{symbol}, 4] {{tp: V}}',
            f"%2: f64[{symbol}, 4] = comm.all_reduce(%0) {{axis = tp, op = sum}}",
            f"%3: f64[{symbol}, 4] = comm.all_reduce(%1) {{axis = tp, op = sum}}",
            f"%4: f64[{symbol}, 4] = aten.add.Tensor(%2, %3)",
            f"%5: f64[4*{symbol}] = aten.view(%4, [-1])",
            "return %5",
            mesh=f"mesh <tp = 4>\nsym {symbol} in [2, 64]",
        )

    def merged(symbol: str) -> SpmdGraph:
        return function(
            f'%0 "x": f64[{symbol}, 4] {{tp: V}}, %1 "y": f64[{symbol}, 4] {{tp: V}}',
            f"%2: f64[{symbol}, 4] = aten.add.Tensor(%0, %1)",
            f"%3: f64[4*{symbol}] = aten.view(%2, [-1])",
            f"%4: f64[4*{symbol}] = comm.all_reduce(%3) {{axis = tp, op = sum}}",
            "return %4",
            mesh=f"mesh <tp = 4>\nsym {symbol} in [2, 64]",
        )

    assert verdict(graph("s0"), graph("s77")) is Verdict.IDENTICAL
    assert verdict(graph("s0"), merged("s77")) is Verdict.EQUIVALENT


def test_inputs_correspond_by_position_whatever_their_names() -> None:
    source = function('%0 "x": f64[4], %1 "y": f64[4] {tp: V}',
                      "%2: f64[4] = aten.sub.Tensor(%0, %1)", "return %2")  # fmt: skip
    same, swapped = (
        function('%0 "y": f64[4], %1 "x": f64[4] {tp: V}',
                 f"%2: f64[4] = aten.sub.Tensor({operands})", "return %2")
        for operands in ("%0, %1", "%1, %0")
    )  # fmt: skip
    assert check(source, same).verdict is Verdict.IDENTICAL
    assert check(source, swapped).verdict is Verdict.NOT_EQUIVALENT


def grid(*lines: str) -> SpmdGraph:
    return function('%0 "x": f64[4] {dp: V, tp: V}', *lines, mesh=GRID)


def test_orthogonal_groups() -> None:
    both = grid(f"%1: {reduce('%0')}", f"%2: {reduce('%1', 'dp')}", "return %2")
    swapped = grid(f"%1: {reduce('%0', 'dp')}", f"%2: {reduce('%1')}", "return %2")
    product = grid('%1: f64[4] = comm.all_reduce(%0) {group = "both", op = sum}', "return %1")
    assert verdict(both, swapped) is Verdict.EQUIVALENT
    assert verdict(both, product) is Verdict.EQUIVALENT
    for axis in ("dp", "tp"):
        half = grid(f"%1: {reduce('%0', axis)}", "return %1")
        assert verdict(both, half) is Verdict.NOT_EQUIVALENT
        for other in ("dp", "tp"):
            again = grid(f"%1: {reduce('%0', axis)}", f"%2: {reduce('%1', other)}", "return %2")
            assert verdict(both, again).runs is (axis != other)


def test_average_is_a_scaled_sum() -> None:
    average = function(X, f"%1: {reduce('%0', op='avg')}", "return %1")
    scaled = function(X, f"%1: {reduce('%0')}", "%2: f64[4] = aten.mul.Tensor(%1, 0.25)",
                      "return %2")  # fmt: skip
    assert verdict(average, scaled) is Verdict.EQUIVALENT


@pytest.mark.parametrize(
    ("op", "source", "target"),
    [("mul", 1.0, 2.0**31), ("mul", 0.5, 2.0**30), ("add", 0, 2**31 - 1), ("add", 1, 2**62)],
)
def test_numbers_that_are_one_modulo_a_prime_are_told_apart(
    op: str, source: float, target: float
) -> None:
    graphs = (function('%0 "x": f64[4]', f"%1: f64[4] = aten.{op}.Tensor(%0, {n!r})", "return %1")
              for n in (source, target))  # fmt: skip
    assert verdict(*graphs) is Verdict.NOT_EQUIVALENT


def test_reducing_what_all_ranks_hold_multiplies_it() -> None:
    inputs = '%0 "r": f64[4]'
    again = function(inputs, f"%1: {reduce('%0')}", "return %1")
    times = function(inputs, "%1: f64[4] = aten.mul.Tensor(%0, 4)", "return %1")
    average = function(inputs, f"%1: {reduce('%0', op='avg')}", "return %1")
    plain = function(inputs, "%1: f64[4] = aten.alias(%0)", "return %1")
    assert verdict(again, times) is Verdict.EQUIVALENT
    assert verdict(average, plain) is Verdict.EQUIVALENT
    assert verdict(again, plain) is Verdict.NOT_EQUIVALENT


def test_random_values_are_fresh_in_program_order() -> None:
    def graph(first: str, second: str) -> SpmdGraph:
        return function(
            '%0 "x": f64[4]',
            "%1: f64[4] = aten.rand_like(%0)",
            "%2: f64[4] = aten.rand_like(%0)",
            f"%3: f64[4] = aten.sub.Tensor({first}, {second})",
            "return %3",
        )

    drawn, back = graph("%1", "%2"), graph("%2", "%1")
    assert check(drawn, drawn.own_copy()).verdict is Verdict.IDENTICAL
    assert not check(drawn, back).verdict.runs
    assert not check(drawn, graph("%1", "%1")).verdict.runs


def test_public_check_takes_placements_of_the_source() -> None:
    swapped = function(XY.replace('"x"', '"a"').replace('"y"', '"b"'),
                       "%2: f64[4] = aten.add.Tensor(%1, %0)", f"%3: {reduce('%2')}",
                       "return %3")  # fmt: skip
    report = check_equivalence(
        SEPARATE.module, swapped.module, mesh=SEPARATE.mesh, inputs=inputs_of(SEPARATE)
    )
    assert report.verdict is Verdict.EQUIVALENT
