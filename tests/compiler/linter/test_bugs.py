"""Mistakes that shipped in serving engines, as graphs: the mistake is found, its fixed twin is not.

The table in docs/lint.md says for every report which rule finds it, or why no graph can show it.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from compiler.linter import findings
from tests.support.graphs import function

SUM = "{axis = tp, op = sum}"
TP4, TP8 = "mesh <tp = 4>", "mesh <tp = 8>"
DP_TP = 'mesh <dp = 2, tp = 2>\ngroup "world" = <dp, tp>'
EP_TP = 'mesh <ep = 2, tp = 2>\ngroup "moe" = <ep, tp>'

MLP = (
    '%0 "x": f64[4, 8], %1 "up": f64[8, 6] {tp: S(1)}, %2 "down": f64[6, 8] {tp: S(0)}',
    "%3: f64[4, 6] = aten.mm(%0, %1)",
    "%4: f64[4, 6] = aten.silu(%3)",
    "%5: f64[4, 8] = aten.mm(%4, %2)",
)
"""A feed-forward block up to its partial sum, %5."""

EXPERTS = '%0 "routed": f64[4, 8] {tp: V}, %1 "shared": f64[4, 8] {tp: V}, %2 "x": f64[4, 8]'
"""What routed and shared experts give on every rank, in an unknown way, and the residual."""


@dataclass(frozen=True)
class Bug:
    """A graph with a mistake and without: inputs, lines, and where which rule finds it."""

    wrong: tuple[str, ...]
    right: tuple[str, ...]
    rule: str
    place: str
    mesh: str = TP4


BUGS = {
    "sglang-20110: the block reduces, the next layer's fused kernel reduces again": Bug(
        (*MLP, f"%6: f64[4, 8] = comm.all_reduce(%5) {SUM}",
         f"%7: f64[4, 8] = comm.all_reduce(%6) {SUM}",
         "%8: f64[4, 8] = aten.add.Tensor(%0, %7)", "return %8"),
        (*MLP, f"%6: f64[4, 8] = comm.all_reduce(%5) {SUM}",
         "%7: f64[4, 8] = aten.add.Tensor(%0, %6)", "return %7"),
        "double-reduction", "%7",
    ),
    "sglang-19918: scattered tokens meet a column-parallel weight, the gather was skipped": Bug(
        ('%0 "x": f64[1, 8] {tp: S(0)}, %1 "up": f64[8, 6] {tp: S(1)}',
         "%2: f64[1, 6] = aten.mm(%0, %1)", "return %2"),
        ('%0 "x": f64[1, 8] {tp: S(0)}, %1 "up": f64[8, 6] {tp: S(1)}',
         "%2: f64[4, 8] = comm.all_gather(%0) {axis = tp}",
         "%3: f64[4, 6] = aten.mm(%2, %1)", "return %3"),
        "crossed-shards", "%2",
    ),
    "sglang-19918: 97 rows scattered over 8 ranks": Bug(
        ('%0 "x": f64[97, 8] {tp: P}',
         f"%1: f64[12, 8] = comm.reduce_scatter(%0) {SUM}", "return %1"),
        ('%0 "x": f64[97, 8] {tp: P}',
         "%1: f64[104, 8] = aten.constant_pad_nd(%0, [0, 0, 0, 7], 0.0)",
         f"%2: f64[13, 8] = comm.reduce_scatter(%1) {SUM}", "return %2"),
        "uneven-rows", "%1", TP8,
    ),
    "sglang-27744: the mark that a stage's result is unreduced was lost at the stage boundary": Bug(
        (*MLP, "return %5, %0"),
        (*MLP, f"%6: f64[4, 8] = comm.all_reduce(%5) {SUM}", "return %6, %0"),
        "partial-output", "%5",
    ),
    "sglang-31475: R + ep * S, a replicated shared expert joins the routed sum": Bug(
        ('%0 "routed": f64[4, 8] {tp: V}, %1 "x": f64[4, 8], %2 "w": f64[8, 8] {tp: R}',
         "%3: f64[4, 8] = aten.mm(%1, %2)",
         "%4: f64[4, 8] = aten.add.Tensor(%0, %3)",
         f"%5: f64[4, 8] = comm.all_reduce(%4) {SUM}", "return %5"),
        ('%0 "routed": f64[4, 8] {tp: V}, %1 "x": f64[4, 8], %2 "w": f64[8, 8] {tp: R}',
         "%3: f64[4, 8] = aten.mm(%1, %2)",
         f"%4: f64[4, 8] = comm.all_reduce(%0) {SUM}",
         "%5: f64[4, 8] = aten.add.Tensor(%4, %3)", "return %5"),
        "replicated-term", "%4",
    ),
    "sglang-33200: a graph of 28 tokens for 8 ranks": Bug(
        ('%0 "x": f64[28, 8] {tp: P}',
         f"%1: f64[3, 8] = comm.reduce_scatter(%0) {SUM}", "return %1"),
        ('%0 "x": f64[32, 8] {tp: P}',
         f"%1: f64[4, 8] = comm.reduce_scatter(%0) {SUM}", "return %1"),
        "uneven-rows", "%1", TP8,
    ),
    "sglang-28216: of a gathered list only the first rank's rows are used": Bug(
        ('%0 "x": f64[2, 8] {tp: S(0)}',
         "%1: f64[8, 8] = comm.all_gather(%0) {axis = tp}",
         "%2: (f64[2, 8], f64[2, 8], f64[2, 8], f64[2, 8]) = aten.split.Tensor(%1, 2)",
         "%3: f64[2, 8] = %2[0]", "return %3"),
        ('%0 "x": f64[2, 8] {tp: S(0)}',
         "%1: f64[8, 8] = comm.all_gather(%0) {axis = tp}",
         "%2: (f64[2, 8], f64[2, 8], f64[2, 8], f64[2, 8]) = aten.split.Tensor(%1, 2)",
         "%3: f64[2, 8] = %2[0]", "%4: f64[2, 8] = %2[1]", "%5: f64[2, 8] = %2[2]",
         "%6: f64[2, 8] = %2[3]", "%7: f64[8, 8] = aten.cat([%3, %4, %5, %6])", "return %7"),
        "unused-chunks", "%1",
    ),
    "sglang-30209: one rank enters with 6 tokens, the others with 7": Bug(
        ('%0 "x": f64[7, 8] {tp: P}',
         "%1: f64[6, 8] = aten.slice.Tensor(%0, 0, 0, rank(6, 7, 7, 7))",
         f"%2: f64[6, 8] = comm.all_reduce(%1) {SUM}", "return %2"),
        ('%0 "x": f64[7, 8] {tp: P}',
         f"%1: f64[7, 8] = comm.all_reduce(%0) {SUM}",
         "%2: f64[6, 8] = aten.slice.Tensor(%1, 0, 0, rank(6, 7, 7, 7))", "return %2"),
        "rank-dependent-size", "%2",
    ),
    "vllm-49122: shared experts reduce their output, then the total is reduced": Bug(
        (EXPERTS, f"%3: f64[4, 8] = comm.all_reduce(%1) {SUM}",
         "%4: f64[4, 8] = aten.add.Tensor(%0, %3)",
         f"%5: f64[4, 8] = comm.all_reduce(%4) {SUM}",
         "%6: f64[4, 8] = aten.add.Tensor(%2, %5)", "return %6"),
        (EXPERTS, "%3: f64[4, 8] = aten.add.Tensor(%0, %1)",
         f"%4: f64[4, 8] = comm.all_reduce(%3) {SUM}",
         "%5: f64[4, 8] = aten.add.Tensor(%2, %4)", "return %5"),
        "replicated-term", "%4",
    ),
    "tpu-inference-3537: a layer that should have deferred its reduction reduced too": Bug(
        (*MLP, f"%6: f64[4, 8] = comm.all_reduce(%5) {SUM}",
         "%7: f64[4, 8] = aten.mul.Tensor(%6, 0.5)",
         f"%8: f64[4, 8] = comm.all_reduce(%7) {SUM}", "return %8"),
        (*MLP, "%6: f64[4, 8] = aten.mul.Tensor(%5, 0.5)",
         f"%7: f64[4, 8] = comm.all_reduce(%6) {SUM}", "return %7"),
        "double-reduction", "%8", TP8,
    ),
    "vllm-34458: a collective over all ranks in place of the tensor-parallel group": Bug(
        ('%0 "x": f64[4, 6] {dp: S(0), tp: S(1)}, %1 "w": f64[6, 8] {tp: S(0)}',
         "%2: f64[4, 8] = aten.mm(%0, %1)",
         '%3: f64[4, 8] = comm.all_reduce(%2) {group = "world", op = sum}', "return %3"),
        ('%0 "x": f64[4, 6] {dp: S(0), tp: S(1)}, %1 "w": f64[6, 8] {tp: S(0)}',
         "%2: f64[4, 8] = aten.mm(%0, %1)",
         "%3: f64[4, 8] = comm.all_reduce(%2) {axis = tp, op = sum}", "return %3"),
        "sums-shards", "%3", DP_TP,
    ),
    "sequence parallelism without the norm that should follow: the residual joins unreduced": Bug(
        (*MLP, "%6: f64[4, 8] = aten.add.Tensor(%0, %5)",
         "%7: f64[4, 8] = aten.silu(%6)", "return %7"),
        (*MLP, f"%6: f64[1, 8] = comm.reduce_scatter(%5) {SUM}",
         "%7: f64[4, 8] = comm.all_gather(%6) {axis = tp}",
         "%8: f64[4, 8] = aten.add.Tensor(%0, %7)", "return %8"),
        "missing-reduction", "%6",
    ),
    "sequence parallelism: hidden states are captured before they are reduced": Bug(
        (*MLP, "%6: f64[4, 8] = aten.mul.Tensor(%5, 2)",
         f"%7: f64[4, 8] = comm.all_reduce(%6) {SUM}", "return %7, %5"),
        (*MLP, f"%6: f64[4, 8] = comm.all_reduce(%5) {SUM}",
         "%7: f64[4, 8] = aten.mul.Tensor(%6, 2)", "return %7, %6"),
        "partial-output", "%5",
    ),
    "sequence parallelism: one branch of the sum is reduced already": Bug(
        ('%0 "a": f64[4, 8] {tp: P}, %1 "b": f64[4, 8] {tp: P}',
         f"%2: f64[4, 8] = comm.all_reduce(%0) {SUM}",
         "%3: f64[4, 8] = aten.add.Tensor(%2, %1)",
         f"%4: f64[1, 8] = comm.reduce_scatter(%3) {SUM}", "return %4"),
        ('%0 "a": f64[4, 8] {tp: P}, %1 "b": f64[4, 8] {tp: P}',
         "%2: f64[4, 8] = aten.add.Tensor(%0, %1)",
         f"%3: f64[1, 8] = comm.reduce_scatter(%2) {SUM}", "return %3"),
        "replicated-term", "%3",
    ),
    "sequence parallelism: any token count on 8 ranks, of 8190 rows 8184 come back": Bug(
        ('%0 "x": f64[s0, 8] {tp: P}',
         f"%1: f64[s0 floordiv 8, 8] = comm.reduce_scatter(%0) {SUM}", "return %1"),
        ('%0 "x": f64[8*s0, 8] {tp: P}',
         f"%1: f64[s0, 8] = comm.reduce_scatter(%0) {SUM}", "return %1"),
        "uneven-rows", "%1", f"{TP8}\nsym s0 in [2, 8192]",
    ),
    "a contraction cut over two orthogonal groups, reduced over one": Bug(
        ('%0 "x": f64[4, 6] {ep: S(1), tp: S(1)}, %1 "w": f64[6, 8] {ep: S(0), tp: S(0)}',
         "%2: f64[4, 8] = aten.mm(%0, %1)",
         f"%3: f64[4, 8] = comm.all_reduce(%2) {SUM}",
         "%4: f64[4, 8] = aten.silu(%3)", "return %4"),
        ('%0 "x": f64[4, 6] {ep: S(1), tp: S(1)}, %1 "w": f64[6, 8] {ep: S(0), tp: S(0)}',
         "%2: f64[4, 8] = aten.mm(%0, %1)",
         '%3: f64[4, 8] = comm.all_reduce(%2) {group = "moe", op = sum}',
         "%4: f64[4, 8] = aten.silu(%3)", "return %4"),
        "nonlinear-on-partial", "%4", EP_TP,
    ),
    "a bias that every rank adds inside a row-parallel layer": Bug(
        ('%0 "x": f64[4, 6] {tp: S(1)}, %1 "w": f64[8, 6] {tp: S(1)}, %2 "b": f64[8] {tp: R}',
         "%3: f64[4, 8] = aten.linear(%0, %1, %2)",
         f"%4: f64[4, 8] = comm.all_reduce(%3) {SUM}", "return %4"),
        ('%0 "x": f64[4, 6] {tp: S(1)}, %1 "w": f64[8, 6] {tp: S(1)}, %2 "b": f64[8] {tp: R}',
         "%3: f64[4, 8] = aten.linear(%0, %1)",
         f"%4: f64[4, 8] = comm.all_reduce(%3) {SUM}",
         "%5: f64[4, 8] = aten.add.Tensor(%4, %2)", "return %5"),
        "replicated-term", "%3",
    ),
    "ranks that count their own tokens enter with as many rows": Bug(
        ('%0 "x": f64[8, 8] {tp: V}, %1 "own": b8[8] {tp: V}',
         "%2: i64[u0, 1] = aten.nonzero(%1)",
         "%3: i64[u0] = aten.squeeze.dim(%2, 1)",
         "%4: f64[u0, 8] = aten.index_select(%0, 0, %3)",
         f"%5: f64[u0, 8] = comm.all_reduce(%4) {SUM}", "return %5"),
        ('%0 "x": f64[8, 8] {tp: V}, %1 "chosen": b8[8]',
         "%2: i64[u0, 1] = aten.nonzero(%1)",
         "%3: i64[u0] = aten.squeeze.dim(%2, 1)",
         "%4: f64[u0, 8] = aten.index_select(%0, 0, %3)",
         f"%5: f64[u0, 8] = comm.all_reduce(%4) {SUM}", "return %5"),
        "rank-dependent-size", "%5", f"{TP4}\nsym u0 in [0, 8]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS.values(), ids=BUGS)
def test_found_and_its_twin_is_silent(bug: Bug) -> None:
    (found,) = findings(function(*bug.wrong, mesh=bug.mesh))
    assert (found.rule, found.value) == (bug.rule, bug.place)
    assert f"  {bug.place}: " in str(found)
    assert findings(function(*bug.right, mesh=bug.mesh)) == ()


def message(name: str) -> str:
    (bug,) = (bug for key, bug in BUGS.items() if key.startswith(name))
    (found,) = findings(function(*bug.wrong, mesh=bug.mesh))
    return str(found)


def test_messages() -> None:
    assert message("vllm-49122") == (
        "replicated-term: aten.add.Tensor adds %3, which is the sum over all ranks already, to "
        "what %5 = all_reduce over tp adds up: it counts 4 times\n"
        "  %4: f64[4, 8] = aten.add.Tensor(%0, %3)\n"
        "  would be right: add %3 after %5, on one rank only, or scaled by 1/4; or leave out its "
        "own reduction"
    )
    assert message("a contraction cut") == (
        "nonlinear-on-partial: aten.silu is not linear, and is applied to %3, a partial sum over "
        "the 2 ranks of ep\n"
        "  %4: f64[4, 8] = aten.silu(%3)\n"
        "  would be right: all_reduce(%3) over ep before %4"
    )
    assert message("sglang-30209") == (
        "rank-dependent-size: ranks enter this all_reduce with sizes that differ between ranks: "
        "rank 0: [6, 8]; rank 1: [7, 8]; rank 2: [7, 8]; rank 3: [7, 8]: they hang, or add what "
        "does not belong together\n"
        "  %2: f64[6, 8] = comm.all_reduce(%1) {axis = tp, op = sum}\n"
        "  would be right: the same size of %1 on every rank: pad to the largest"
    )
