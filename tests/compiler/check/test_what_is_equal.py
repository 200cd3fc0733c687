"""What counts as equal and what does not: infinities, whole numbers, attributes."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from compiler.check import Verdict, check
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import Mesh
from compiler.ir.text import parse_graph
from tests.support.graphs import Builder, aten, function


def filled(*, twice: bool) -> SpmdGraph:
    build = Builder(Mesh({"tp": 4}))
    x = build.input("x", 8, 8)
    y = x
    for _ in range(2 if twice else 0):  # no law says that this is x
        y = build.call(aten.flip.default, y, [0])
    mask = build.call(aten.lt.Scalar, x, 0.0)
    return build.finish(build.call(aten.masked_fill.Scalar, y, mask, float("-inf")))


def test_equal_infinities_are_no_difference() -> None:
    assert check(filled(twice=True), filled(twice=False)).verdict is Verdict.UNPROVED


def test_whole_numbers_are_averaged_with_a_remainder() -> None:
    def graph(kind: str, *, first: bool) -> SpmdGraph:
        steps = ["comm.all_reduce(%N) {axis = tp, op = avg}", "aten.mul.Tensor(%N, 2)"]
        one, two = steps if first else steps[::-1]
        lines = (one.replace("%N", "%0"), two.replace("%N", "%1"))
        named = [f"%{i}: {kind}[4] = {line}" for i, line in enumerate(lines, 1)]
        return function(f'%0 "x": {kind}[4] {{tp: V}}', *named, "return %2")

    assert check(graph("f64", first=True), graph("f64", first=False)).verdict is Verdict.EQUIVALENT
    assert check(graph("i64", first=True), graph("i64", first=False)).verdict is not (
        Verdict.EQUIVALENT
    )


def test_a_slice_of_maxima_is_linear_too() -> None:
    """Inside a sum over other ranks, and outside of the maximum."""
    args, mesh = '%0 "x": f64[4] {tp: V, dp: V}', "mesh <tp = 2, dp = 2>"
    ops = {
        "max": "comm.all_reduce(%N) {axis = dp, op = max}",
        "sum": "comm.all_reduce(%N) {axis = tp, op = sum}",
        "slice": "aten.slice.Tensor(%N, 0, 1, 4)",
    }

    def graph(*names: str) -> SpmdGraph:
        sizes = [4 - ("slice" in names[:i]) for i in range(1, 4)]
        lines = [
            f"%{i}: f64[{size}] = {ops[name].replace('%N', f'%{i - 1}')}"
            for i, (name, size) in enumerate(zip(names, sizes, strict=True), 1)
        ]
        return function(args, *lines, "return %3", mesh=mesh)

    same = [graph(*names) for names in (
        ("max", "sum", "slice"), ("max", "slice", "sum"), ("slice", "max", "sum"),
    )]  # fmt: skip
    assert all(check(left, right).verdict.runs for left in same for right in same)
    wrong = graph("sum", "max", "slice")
    assert all(check(right, wrong).verdict is Verdict.NOT_EQUIVALENT for right in same)


def test_what_is_done_to_bits_depends_on_their_number() -> None:
    def graph(*, wide_first: bool) -> SpmdGraph:
        build = Builder(Mesh({"tp": 2}))
        x = build.input("x", 4, dtype=torch.uint8)
        steps = [(aten._to_copy.default, {"dtype": torch.int64}), (aten.bitwise_not.default, {})]
        for op, options in steps if wide_first else steps[::-1]:
            x = build.call(op, x, **options)
        return build.finish(x)

    found = check(graph(wide_first=True), graph(wide_first=False))
    assert found.verdict is Verdict.NOT_EQUIVALENT


def weighed(held: torch.Tensor, axis: str) -> SpmdGraph:
    """``x + reduced w``, where every rank has a ``w`` of its own."""
    build = Builder(Mesh({"dp": 2, "tp": 2}), {"w": held})
    w = build.attribute("w", varies=("dp", "tp"))
    w.meta["val"] = torch.empty(4, dtype=torch.float64, device="meta")
    total = build.all_reduce(w, axis)
    return build.finish(build.call(aten.add.Tensor, build.input("x", 4), total))


def test_attributes_that_vary_are_other_numbers_on_other_ranks() -> None:
    held = torch.arange(4, dtype=torch.float64)
    found = check(weighed(held, "tp"), weighed(held, "dp"))
    assert found.verdict is Verdict.NOT_EQUIVALENT


@pytest.mark.parametrize("kind", ["nan", "fake"])
def test_the_same_attribute_made_twice(kind: str) -> None:
    if kind == "fake":
        held = []
        for _ in range(2):
            with FakeTensorMode():
                held.append(torch.empty(4, dtype=torch.float64))
    else:
        held = [torch.tensor([1.0, torch.nan, 3.0, 4.0], dtype=torch.float64) for _ in range(2)]
    assert check(weighed(held[0], "tp"), weighed(held[1], "tp")).verdict is Verdict.IDENTICAL


@pytest.mark.parametrize(
    ("lines", "verdict"),
    [
        (["aten.sum.dim_IntList(%0, [1])", "aten.div.Tensor(%1, 8)"], Verdict.EQUIVALENT),
        (["aten.sum.dim_IntList(%0, [1])", "aten.mul.Tensor(%1, 0.125)"], Verdict.EQUIVALENT),
        (["aten.sum.dim_IntList(%0, [1])", "aten.div.Tensor(%1, 7)"], Verdict.NOT_EQUIVALENT),
        (["aten.sum.dim_IntList(%0, [0])", "aten.div.Tensor(%1, 8)"], Verdict.NOT_EQUIVALENT),
    ],
)
def test_a_mean_is_a_sum_over_the_number_of_addends(lines: list[str], verdict: Verdict) -> None:
    def graph(*calls: str) -> SpmdGraph:
        named = [f"%{i}: f64[8] = {call}" for i, call in enumerate(calls, 1)]
        return function('%0 "x": f64[8, 8]', *named, f"return %{len(calls)}")

    assert check(graph("aten.mean.dim(%0, [1])"), graph(*lines)).verdict is verdict


def test_a_mean_of_any_number_of_rows_is_linear() -> None:
    def graph(*calls: str) -> SpmdGraph:
        return parse_graph(
            'mesh <tp = 4>\nsym s0 in [2, 64]\nfunc @main(%0 "x": f64[s0, 8]) {\n'
            + "\n".join(calls)
            + "\nreturn %2\n}"
        )

    first = graph("%1: f64[s0, 8] = aten.mul.Tensor(%0, 3)", "%2: f64[8] = aten.mean.dim(%1, [0])")
    then = graph("%1: f64[8] = aten.mean.dim(%0, [0])", "%2: f64[8] = aten.mul.Tensor(%1, 3)")
    assert check(first, then).verdict is Verdict.EQUIVALENT
