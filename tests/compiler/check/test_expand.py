"""Graphs with fused ops, judged by the compositions; calls that are no such thing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx

from compiler.check import Verdict, check
from compiler.check.expand import expanded
from compiler.ir.graph import SpmdGraph
from compiler.ir.row_ops import resized
from tests.support.graphs import function

INPUTS = '%0 "x": f32[8, 16] {tp: V}, %1 "r": f32[8, 16] {tp: R}, %2 "w": f32[16] {tp: R}'
WRITTEN = (
    "%3: f32[8, 16] = comm.all_reduce(%0) {axis = tp, op = sum}",
    "%4: f32[8, 16] = aten.add.Tensor(%1, %3)",
    "%5: f32[8, 16] = aten.rms_norm(%4, [16], %2, 1e-06)",
    "return %5, %4",
)
FUSED = (
    '%3: (f32[8, 16], f32[8, 16]) = commplan.all_reduce_add_rms_norm(%0, %1, %2, 1e-06, 0.0, "tp")',
    "%4: f32[8, 16] = %3[0]",
    "%5: f32[8, 16] = %3[1]",
    "return %4, %5",
)


def fused_call(graph: SpmdGraph) -> fx.Node:
    return next(n for n in graph.graph.nodes if "rms_norm" in str(n.target))


def fused_behind(operand: str, *before: str) -> SpmdGraph:
    """The fused op on the last of the values ``before`` it, in the place of ``operand``."""
    n = 3 + len(before)
    return function(
        INPUTS,
        *before,
        FUSED[0].replace(f"{operand},", f"%{n - 1},").replace("%3:", f"%{n}:"),
        f"%{n + 1}: f32[8, 16] = %{n}[0]",
        f"%{n + 2}: f32[8, 16] = %{n}[1]",
        f"return %{n + 1}, %{n + 2}",
    )


def test_a_value_that_is_rounded_on_the_way_is_not_proved() -> None:
    call, *rest = FUSED
    rounded = fused_behind(
        "%0",
        "%3: bf16[8, 16] = aten._to_copy(%0, dtype=bf16)",
        "%4: f32[8, 16] = aten._to_copy(%3, dtype=f32)",
    )
    report = check(function(INPUTS, *WRITTEN), rounded)
    assert report.verdict is Verdict.UNPROVED
    assert report.explanation.startswith("1 more conversions from torch.float32 to torch.bfloat16")
    unread = (call, *rest[:2], "%6: bf16[8, 16] = aten._to_copy(%0, dtype=bf16)")
    report = check(function(INPUTS, *WRITTEN), function(INPUTS, *unread, rest[-1]))
    assert report.verdict is Verdict.EQUIVALENT


def test_a_factor_that_is_one_on_the_first_rank_alone_counts() -> None:
    scaled = fused_behind("%2", "%3: f32[16] = aten.mul.Tensor(%2, rank(1.0, 0.5, 0.5, 0.5))")
    report = check(function(INPUTS, *WRITTEN), scaled)
    assert report.verdict is Verdict.NOT_EQUIVALENT


def test_both_sides_may_call_fused_ops() -> None:
    written, fused = function(INPUTS, *WRITTEN), function(INPUTS, *FUSED)
    for source, target in ((written, fused), (fused, written)):
        assert check(source, target).verdict is Verdict.EQUIVALENT
    assert check(fused, function(INPUTS, *FUSED)).verdict is Verdict.IDENTICAL
    assert expanded(written)[0] is written


def test_a_graph_that_calls_is_left_as_it_is() -> None:
    fused = function(INPUTS, *FUSED)
    before = str(fused.graph)
    assert str(expanded(fused)[0].graph) != before
    assert str(fused.graph) == before


def wrong_shape(call: fx.Node) -> None:
    for node in call.users:
        node.meta = {"val": resized(node.meta["val"], 0, 4)}


def third_result(call: fx.Node) -> None:
    next(iter(call.users)).args = (call, 2)


def all_at_once(call: fx.Node) -> None:
    next(iter(call.users)).target = torch.ops.aten.stack.default
    next(iter(call.users)).args = (call,)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (third_result, "reads no result of %"),
        (all_at_once, "reads no result of %"),
        (wrong_shape, "output 0 is f32[8, 16] in the source"),
    ],
)
def test_calls_that_are_read_as_what_they_do_not_give(
    damage: Callable[[fx.Node], None], why: str
) -> None:
    source, target = function(INPUTS, *WRITTEN), function(INPUTS, *FUSED)
    damage(fused_call(target))
    report = check(source, target)
    assert report.verdict is Verdict.INVALID
    assert why in report.explanation.replace("float32", "f32")


def test_results_state_what_their_composition_gives() -> None:
    source = function(
        INPUTS, *WRITTEN[:3], "%6: f32[8, 16] = aten._to_copy(%5, dtype=f32)", "return %6"
    )
    target = function(
        INPUTS, *FUSED[:2], "%5: f32[8, 16] = aten._to_copy(%4, dtype=f32)", "return %5"
    )
    assert check(source, target).verdict is Verdict.EQUIVALENT
    (norm,) = fused_call(target).users
    norm.meta = {"val": norm.meta["val"].to(torch.float16)}
    report = check(source, target)
    assert report.verdict is Verdict.INVALID
    assert "the metadata of" in report.explanation
