"""Rows shared between ranks: laws that hold in the model, and equations that must not."""

from __future__ import annotations

import numpy as np
import pytest
import sympy

from compiler.check import Verdict, check
from compiler.check.blocks import Value, aligned
from compiler.ir.graph import SpmdGraph
from tests.support.graphs import function

FOUR = "mesh <tp = 4>"
ARGS = (
    '%0 "x": f64[8, 6] {tp: V}, %1 "r": f64[8, 6], %2 "w": f64[6, 6], %3 "b": f64[6], '
    '%4 "s": f64[2, 6] {tp: V}'
)
"""A partial sum, the replicated residual, a replicated weight, a vector; rows of one rank."""

SUM = "comm.all_reduce({}) {{axis = tp, op = sum}}"
SCATTER = "comm.reduce_scatter({}) {{axis = tp, op = sum}}"
GATHER = "comm.all_gather({}) {{axis = tp}}"
SLICE = 'commplan.all_slice({}, 0, 4, "tp")'
NORM = "aten.rms_norm({}, [6], %3, 1e-6)"
WHOLE, OWN = "f64[8, 6]", "f64[2, 6]"


def program(*steps: tuple[str, str], args: str = ARGS, first: int = 5, **more: str) -> SpmdGraph:
    """Steps (type, call), numbered from %5; the last is returned."""
    lines = [f"%{i}: {kind} = {call}" for i, (kind, call) in enumerate(steps, first)]
    return function(args, *lines, f"return %{first + len(steps) - 1}", **{"mesh": FOUR, **more})


def whole(*calls: str) -> list[tuple[str, str]]:
    return [(WHOLE, call) for call in calls]


def own(*calls: str) -> list[tuple[str, str]]:
    return [(OWN, call) for call in calls]


SQUARED = (("f64[6, 8]", "aten.t(%0)"), ("f64[8, 8]", "aten.mm(%0, %5)"),
           ("f64[6, 8]", "aten.mm(%5, %6)"))  # fmt: skip
"""A sum over rows, of which the result has as many."""

LAWS = {
    "all_reduce is reduce_scatter and all_gather": (
        whole(SUM.format("%0")),
        [*own(SCATTER.format("%0")), *whole(GATHER.format("%5"))],
    ),
    "reduce_scatter is the share of an all_reduce": (
        [*whole(SUM.format("%0")), *own(SLICE.format("%5"))],
        own(SCATTER.format("%0")),
    ),
    "one of several parts of a maximum, of rows in blocks": (
        [*whole("comm.all_reduce(%0) {axis = tp, op = max}"), *own(SLICE.format("%1")),
         (f"({OWN}, {OWN}, {OWN}, {OWN})", "aten.split.Tensor(%5, 2, 0)"), (OWN, "%7[1]")],
        [(f"({OWN}, {OWN}, {OWN}, {OWN})", "aten.split.Tensor(%0, 2, 0)"), (OWN, "%5[1]"),
         (OWN, "comm.all_reduce(%6) {axis = tp, op = max}")],
    ),
    "rows summed over leave as many rows of another tensor, however they are named": (
        [*SQUARED, ("f64[6, 8]", "aten.alias(%7)"), *whole("aten.t(%8)"),
         *own(SCATTER.format("%9"))],
        [*SQUARED, *whole("aten.t(%7)"), *own(SCATTER.format("%8"))],
    ),
    "a maximum of zeros": (
        whole("aten.sub.Tensor(%0, %0)", "comm.all_reduce(%5) {axis = tp, op = max}",
              "aten.mul.Tensor(%6, %1)"),
        whole("aten.sub.Tensor(%1, %1)"),
    ),
    "a share of as many rows as columns are shared": (
        [(OWN, "comm.reduce_scatter(%0) {axis = tp, op = sum}"), (OWN, "aten.copy(%5, %5)")],
        [(OWN, "comm.reduce_scatter(%0) {axis = tp, op = sum}")],
    ),
    "shares of as many rows as others have in all": (
        [("f64[16, 6]", "aten.cat([%1, %1], 0)"), ("f64[16, 6]", "aten.silu(%5)"),
         ("f64[2, 6]", SLICE.format("%1")), (WHOLE, GATHER.format("%7")),
         ("f64[4, 6]", 'commplan.all_slice(%6, 0, 4, "tp")')],
        [("f64[16, 6]", "aten.cat([%1, %1], 0)"),
         ("f64[4, 6]", 'commplan.all_slice(%5, 0, 4, "tp")'), ("f64[4, 6]", "aten.silu(%6)")],
    ),
    "a slice of everything": (
        whole("aten.narrow(%1, 0, rank(0, 0, 0, 0), 8)", "aten.slice.Tensor(%5, 1, 0, 6)"),
        whole("aten.alias(%1)"),
    ),
    "gather of shares": (
        [*own(SLICE.format("%1")), *whole(GATHER.format("%5"))],
        whole("aten.alias(%1)"),
    ),
    "add and norm on shares": (
        whole(SUM.format("%0"), "aten.add.Tensor(%5, %1)", NORM.format("%6")),
        [*own(SCATTER.format("%0"), SLICE.format("%1"), "aten.add.Tensor(%5, %6)",
              NORM.format("%7")), *whole(GATHER.format("%8"))],
    ),
    "a norm by hand on shares": (
        [*whole(SUM.format("%0"), "aten.mul.Tensor(%5, %5)"),
         ("f64[8, 1]", "aten.mean.dim(%6, [-1], true)"), ("f64[8, 1]", "aten.rsqrt(%7)"),
         *whole("aten.mul.Tensor(%5, %8)", "aten.mul.Tensor(%9, %3)")],
        [*own(SCATTER.format("%0"), "aten.mul.Tensor(%5, %5)"),
         ("f64[2, 1]", "aten.mean.dim(%6, [-1], true)"), ("f64[2, 1]", "aten.rsqrt(%7)"),
         *own("aten.mul.Tensor(%5, %8)", "aten.mul.Tensor(%9, %3)"),
         *whole(GATHER.format("%10"))],
    ),
    "matmul with a replicated weight on shares": (
        whole(SUM.format("%0"), "aten.mm(%5, %2)"),
        [*own(SCATTER.format("%0"), "aten.mm(%5, %2)"), *whole(GATHER.format("%6"))],
    ),
    "views that keep rows": (
        [*whole(SUM.format("%0")), ("f64[8, 2, 3]", "aten.view(%5, [8, 2, 3])"),
         ("f64[8, 2, 3]", "aten.softmax.int(%6, -1)"), ("f64[16, 3]", "aten.view(%7, [16, 3])"),
         ("f64[16, 3]", "aten.silu(%8)"), *whole("aten.view(%9, [8, 6])")],
        [*own(SCATTER.format("%0")), ("f64[2, 2, 3]", "aten.view(%5, [2, 2, 3])"),
         ("f64[2, 2, 3]", "aten.softmax.int(%6, -1)"), ("f64[4, 3]", "aten.view(%7, [4, 3])"),
         ("f64[4, 3]", "aten.silu(%8)"), *own("aten.view(%9, [2, 6])"),
         *whole(GATHER.format("%10"))],
    ),
    "a sum over rows is a sum over shares": (
        [*whole(SUM.format("%0")), ("f64[6]", "aten.sum.dim_IntList(%5, [0])")],
        [*own(SCATTER.format("%0")), ("f64[6]", "aten.sum.dim_IntList(%5, [0])"),
         ("f64[6]", SUM.format("%6"))],
    ),
    "reduce_scatters that meet": (
        own(SCATTER.format("%0"), SCATTER.format("%1"), "aten.add.Tensor(%5, %6)"),
        [*whole("aten.add.Tensor(%0, %1)"), *own(SCATTER.format("%5"))],
    ),
    "one gather for two": (
        [*whole(GATHER.format("%4")), *own("aten.silu(%4)"), *whole(GATHER.format("%6"),
                                                                    "aten.mul.Tensor(%5, %7)")],
        [*own("aten.silu(%4)", "aten.mul.Tensor(%4, %5)"), *whole(GATHER.format("%6"))],
    ),
    "slice of as many rows as a share": (
        [*whole(SUM.format("%0")),
         *own("aten.slice.Tensor(%5, 0, rank(0, 2, 4, 6), rank(2, 4, 6, 8))")],
        own(SCATTER.format("%0")),
    ),
    "maxima are shared like sums": (
        whole("comm.all_reduce(%0) {axis = tp, op = max}", "aten.silu(%5)"),
        [*own("comm.reduce_scatter(%0) {axis = tp, op = max}", "aten.silu(%5)"),
         *whole(GATHER.format("%6"))],
    ),
}  # fmt: skip

NO_LAWS = {
    "softmax over rows": (
        whole(SUM.format("%0"), "aten.softmax.int(%5, 0)"),
        [*own(SCATTER.format("%0"), "aten.softmax.int(%5, 0)"), *whole(GATHER.format("%6"))],
    ),
    "running sum over rows": (
        whole(SUM.format("%0"), "aten.cumsum(%5, 0)"),
        [*own(SCATTER.format("%0"), "aten.cumsum(%5, 0)"), *whole(GATHER.format("%6"))],
    ),
    "shares flipped": (
        whole(SUM.format("%0"), "aten.flip(%5, [0])"),
        [*own(SCATTER.format("%0"), "aten.flip(%5, [0])"), *whole(GATHER.format("%6"))],
    ),
    "mean over rows of a share": (
        [*whole(SUM.format("%0")), ("f64[6]", "aten.mean.dim(%5, [0])")],
        [*own(SCATTER.format("%0")), ("f64[6]", "aten.mean.dim(%5, [0])"),
         ("f64[6]", SUM.format("%6"))],
    ),
    "the next rank's rows": (
        [*whole(SUM.format("%0")),
         *own("aten.slice.Tensor(%5, 0, rank(2, 4, 6, 0), rank(4, 6, 8, 2))")],
        own(SCATTER.format("%0")),
    ),
    "maximum against sum": (
        whole("comm.all_reduce(%0) {axis = tp, op = max}"),
        [*own(SCATTER.format("%0")), *whole(GATHER.format("%5"))],
    ),
    "rows mixed by a transposing view": (
        [*whole(SUM.format("%0")), ("f64[6, 8]", "aten.view(%5, [6, 8])"),
         ("f64[6, 8]", "aten.softmax.int(%6, -1)"), *whole("aten.view(%7, [8, 6])")],
        [*own(SCATTER.format("%0")), ("f64[6, 2]", "aten.view(%5, [6, 2])"),
         ("f64[6, 2]", "aten.softmax.int(%6, -1)"), *own("aten.view(%7, [2, 6])"),
         *whole(GATHER.format("%8"))],
    ),
    "a residual that is not cut but scattered": (
        whole(SUM.format("%0"), "aten.add.Tensor(%5, %1)"),
        [*own(SCATTER.format("%0"), SCATTER.format("%1"), "aten.add.Tensor(%5, %6)"),
         *whole(GATHER.format("%7"))],
    ),
    "shares of a varying tensor are not the whole": (
        whole("aten.alias(%0)"),
        [*own(SLICE.format("%0")), *whole(GATHER.format("%5"))],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAWS)
def test_laws(name: str) -> None:
    left, right = (program(*side) for side in LAWS[name])
    assert check(left, right).verdict is Verdict.EQUIVALENT
    assert check(right, left).verdict is Verdict.EQUIVALENT


@pytest.mark.parametrize("name", NO_LAWS)
def test_equations_that_do_not_hold(name: str) -> None:
    left, right = (program(*side) for side in NO_LAWS[name])
    assert check(left, right).verdict is Verdict.NOT_EQUIVALENT


SYMBOLIC = "mesh <tp = 4>\nsym s in [2, 4096]"
SHARE = "(s + 3) floordiv 4"
INPUTS = '%0 "x": f64[s, 6] {tp: V}, %1 "r": f64[s, 6], %2 "b": f64[6]'


def sharded(*steps: str, last: str = "aten.slice.Tensor(%{}, 0, 0, %3)") -> SpmdGraph:
    """Pads, scatters, runs ``steps`` on shares from %6, gathers and cuts back."""
    lines = [
        ("sym(s)", "aten.sym_size.int(%0, 0)"),
        (f"f64[4*({SHARE}), 6]", "commplan.pad_rows(%0, 0, 4)"),
        (f"f64[{SHARE}, 6]", SCATTER.format("%4")),
        *((f"f64[{SHARE}, 6]", step) for step in steps),
        (f"f64[4*({SHARE}), 6]", GATHER.format(f"%{5 + len(steps)}")),
        ("f64[s, 6]", last.format(6 + len(steps))),
    ]
    return program(*lines, args=INPUTS, first=3, mesh=SYMBOLIC)


def test_rows_that_ranks_cannot_share_evenly_are_padded() -> None:
    """For every number of rows at once: padding is inert, and is cut off."""
    steps = (SUM.format("%0"), "aten.add.Tensor(%3, %1)", "aten.rms_norm(%4, [6], %2, 1e-6)",
             "aten.exp(%5)")  # fmt: skip
    source = program(*(("f64[s, 6]", s) for s in steps), args=INPUTS, first=3, mesh=SYMBOLIC)
    target = sharded(SLICE.format("%1"), "aten.add.Tensor(%5, %6)",
                     "aten.rms_norm(%7, [6], %2, 1e-6)", "aten.exp(%8)")  # fmt: skip
    assert check(source, target).verdict is Verdict.EQUIVALENT


def test_what_reads_padding_is_not_proved() -> None:
    source = program(("f64[s, 6]", SUM.format("%0")), ("f64[6]", "aten.amax(%3, [0])"),
                     args=INPUTS, first=3, mesh=SYMBOLIC)  # fmt: skip
    target = program(
        ("f64[4*((s + 3) floordiv 4), 6]", "commplan.pad_rows(%0, 0, 4)"),
        (f"f64[{SHARE}, 6]", SCATTER.format("%3")),
        ("f64[4*((s + 3) floordiv 4), 6]", GATHER.format("%4")),
        ("f64[6]", "aten.amax(%5, [0])"),
        args=INPUTS, first=3, mesh=SYMBOLIC,
    )  # fmt: skip
    assert not check(source, target).verdict.runs


def test_rows_are_cut_where_every_block_holds_as_many() -> None:
    rows, data = sympy.Symbol("s", integer=True, positive=True), np.zeros((1, 4, 1, 1), np.uint64)
    four = ((None, 4),)
    assert aligned(Value(data, (0,), four), 8)
    assert not aligned(Value(data, (0,), four), 6)
    assert not aligned(Value(data, (0,), four), rows)
    assert aligned(Value(data, (0,), four), 4 * rows)
    assert not aligned(Value(data, (0,), four, unit=4), 4 * rows)
    assert aligned(Value(data, (0,), four, padded=True), rows)


def test_of_several_factors_the_outermost_of_the_result_is_cut() -> None:
    inputs, mesh = '%0 "z": f64[4, 4], %1 "w": f64[4, 4]', "mesh <tp = 2>"
    call = 'aten.einsum("tk,nk->nt", [%0, {}])'
    source = function(inputs, f"%2: f64[4, 4] = {call.format('%1')}", "return %2", mesh=mesh)
    target = function(
        inputs,
        '%2: f64[2, 4] = commplan.all_slice(%1, 0, 2, "tp")',
        f"%3: f64[2, 4] = {call.format('%2')}",
        "%4: f64[4, 4] = comm.all_gather(%3) {axis = tp}",
        "return %4",
        mesh=mesh,
    )
    assert check(source, target).verdict is Verdict.EQUIVALENT


def test_slice_of_blocks_to_an_open_size() -> None:
    def graph(*reduced: str) -> SpmdGraph:
        return function(
            '%0 "x": f64[8, 4] {tp: V}, %1 "y": f64[s0, 4]',
            "%2: sym(s0) = aten.sym_size.int(%1, 0)",
            *reduced,
            "%5: f64[s0, 4] = aten.slice.Tensor(%4, 0, 0, %2)",
            "return %5",
            mesh="mesh <tp = 2>\nsym s0 in [2, 8]",
        )

    whole_rows = graph(f"%3: f64[8, 4] = {SUM.format('%0')}", "%4: f64[8, 4] = aten.alias(%3)")
    shared = graph(
        f"%3: f64[4, 4] = {SCATTER.format('%0')}", f"%4: f64[8, 4] = {GATHER.format('%3')}"
    )
    assert check(whole_rows, shared).verdict is Verdict.EQUIVALENT
