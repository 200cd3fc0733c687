"""Correct graphs have no finding: patterns that look like mistakes, and random graphs."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import pytest
import torch

from compiler.check.simulate import simulate
from compiler.ir import access
from compiler.ir.collectives import Kind
from compiler.ir.graph import SpmdGraph
from compiler.linter import findings
from compiler.linter.facts import LintFacts
from scripts.mutate import Draft, NothingToBreakError, mutant
from tests.support.graphs import function
from tests.support.placed_graphs import MESH, placed_graph
from tests.support.seeds import share

SUM = "{axis = tp, op = sum}"

PATTERNS = {
    "a whole term scaled by 1 / n": (
        '%0 "x": f64[4] {tp: P}, %1 "b": f64[4]',
        "%2: f64[4] = aten.div.Tensor(%1, 4)", "%3: f64[4] = aten.add.Tensor(%0, %2)",
        f"%4: f64[4] = comm.all_reduce(%3) {SUM}", "return %4",
    ),
    "an average that is multiplied by n is the sum": (
        '%0 "x": f64[4, 6] {tp: S(1)}, %1 "w": f64[6, 8] {tp: S(0)}',
        "%2: f64[4, 8] = aten.mm(%0, %1)",
        "%3: f64[4, 8] = comm.all_reduce(%2) {axis = tp, op = avg}",
        "%4: f64[32] = aten.view(%3, [32])", "%5: f64[32] = aten.mul.Tensor(%4, 4)",
        "return %5",
    ),
    "a second sum that is divided by n later": (
        '%0 "x": f64[4] {tp: V}',
        f"%1: f64[4] = comm.all_reduce(%0) {SUM}", f"%2: f64[4] = comm.all_reduce(%1) {SUM}",
        "%3: f64[2, 2] = aten.view(%2, [2, 2])", "%4: f64[2, 2] = aten.div.Tensor(%3, 4)",
        "return %4",
    ),
    "a whole term scaled by 1 / n in two steps, of a sum nobody takes here": (
        '%0 "x": f64[4] {tp: V}, %1 "b": f64[4]',
        "%2: f64[4] = aten.mul.Tensor(%1, 0.5)", "%3: f64[4] = aten.neg(%2)",
        "%4: f64[4] = aten.sub.Tensor(%0, %3, alpha = 0.5)",
        f"%5: f64[4] = comm.all_reduce(%4) {SUM}", "return %5",
    ),
    "a whole term on one rank only": (
        '%0 "x": f64[4] {tp: P}, %1 "b": f64[4]',
        "%2: f64[4] = aten.mul.Tensor(%1, rank(1.0, 0.0, 0.0, 0.0))",
        "%3: f64[4] = aten.add.Tensor(%0, %2)",
        f"%4: f64[4] = comm.all_reduce(%3) {SUM}", "return %4",
    ),
    "averages of what ranks hold, whole terms included": (
        '%0 "x": f64[4] {tp: V}, %1 "b": f64[4]',
        "%2: f64[4] = aten.add.Tensor(%0, %1)",
        "%3: f64[4] = comm.all_reduce(%2) {axis = tp, op = avg}",
        "%4: f64[4] = comm.all_reduce(%1) {axis = tp, op = avg}", "return %3, %4",
    ),
    "the mean over tokens as an average of the ranks' means": (
        '%0 "x": f64[4, 8] {tp: S(0)}',
        "%1: f64[8] = aten.sum.dim_IntList(%0, [0])", "%2: f64[8] = aten.div.Tensor(%1, 4)",
        "%3: f64[8] = comm.all_reduce(%2) {axis = tp, op = avg}", "return %3",
    ),
    "an all_reduce by hand: gather, then sum over ranks": (
        '%0 "x": f64[2, 8] {tp: P}',
        "%1: f64[8, 8] = comm.all_gather(%0) {axis = tp}",
        "%2: f64[4, 2, 8] = aten.view(%1, [4, 2, 8])",
        "%3: f64[2, 8] = aten.sum.dim_IntList(%2, [0])", "return %3",
    ),
    "an all_reduce by hand, piece by piece": (
        '%0 "x": f64[2, 8] {dp: R, tp: P}',
        "%1: f64[4, 8] = comm.all_gather(%0) {axis = tp}",
        "%2: (f64[2, 8], f64[2, 8]) = aten.split.Tensor(%1, 2)",
        "%3: f64[2, 8] = %2[0]", "%4: f64[2, 8] = %2[1]",
        "%5: f64[2, 8] = aten.add.Tensor(%3, %4)", "return %5",
    ),
    "an all_reduce by hand of values in one byte": (
        '%0 "x": f32[2, 8] {tp: P}',
        "%1: f32[2, 8] = aten.abs(%0)", "%2: f32[2, 1] = aten.amax(%1, [1], true)",
        "%3: f32[2, 8] = aten.div.Tensor(%0, %2)",
        "%4: f8e4m3fn[2, 8] = aten._to_copy(%3, dtype = f8e4m3fn)",
        "%5: f8e4m3fn[8, 8] = comm.all_gather(%4) {axis = tp}",
        "%6: f32[8, 1] = comm.all_gather(%2) {axis = tp}",
        "%7: f32[8, 8] = aten._to_copy(%5, dtype = f32)",
        "%8: f32[8, 8] = aten.mul.Tensor(%7, %6)",
        "%9: f32[4, 2, 8] = aten.view(%8, [4, 2, 8])",
        "%10: f32[2, 8] = aten.sum.dim_IntList(%9, [0])", "return %10",
    ),
    "a softmax over the vocabulary, cut over ranks": (
        '%0 "x": f64[4, 8], %1 "head": f64[8, 16] {tp: S(1)}',
        "%2: f64[4, 16] = aten.mm(%0, %1)", "%3: f64[4, 1] = aten.amax(%2, [1], true)",
        "%4: f64[4, 1] = comm.all_reduce(%3) {axis = tp, op = max}",
        "%5: f64[4, 16] = aten.sub.Tensor(%2, %4)", "%6: f64[4, 16] = aten.exp(%5)",
        "%7: f64[4, 1] = aten.sum.dim_IntList(%6, [1], true)",
        f"%8: f64[4, 1] = comm.all_reduce(%7) {SUM}",
        "%9: f64[4, 16] = aten.div.Tensor(%6, %8)", "return %9",
    ),
    "each rank's part of a total": (
        '%0 "count": f64[4] {tp: V}', f"%1: f64[4] = comm.all_reduce(%0) {SUM}",
        "%2: f64[4] = aten.div.Tensor(%0, %1)", "return %2",
    ),
    "token counts of all ranks": (
        '%0 "count": f64[1] {tp: S(0)}', f"%1: f64[1] = comm.all_reduce(%0) {SUM}", "return %1",
    ),
    "ranks that are counted, and a sum divided by their number": (
        '%0 "x": f64[1]', "%1: f64[1] = aten.full([1], 1.0, dtype = f64)",
        f"%2: f64[1] = comm.all_reduce(%1) {SUM}", f"%3: f64[1] = comm.all_reduce(%0) {SUM}",
        "%4: f64[1] = aten.div.Tensor(%3, 4)", "return %2, %4",
    ),
    "a vocabulary in blocks": (
        '%0 "ids": i64[6], %1 "w": f64[16, 8] {tp: S(0)}',
        "%2: i64[6] = aten.sub.Tensor(%0, rank(0, 16, 32, 48))",
        "%3: b8[6] = aten.lt.Scalar(%2, 0)", "%4: b8[6] = aten.ge.Scalar(%2, 16)",
        "%5: b8[6] = aten.bitwise_or.Tensor(%3, %4)",
        "%6: i64[6] = aten.masked_fill.Scalar(%2, %5, 0)",
        "%7: f64[6, 8] = aten.embedding(%1, %6)", "%8: b8[6, 1] = aten.unsqueeze(%5, 1)",
        "%9: f64[6, 8] = aten.masked_fill.Scalar(%7, %8, 0.0)",
        f"%10: f64[6, 8] = comm.all_reduce(%9) {SUM}", "return %10",
    ),
    "experts' rows collected in zeros": (
        '%0 "rows": f64[4, 8] {tp: P}, %1 "index": i64[4]',
        "%2: f64[6, 8] = aten.full([6, 8], 0.0, dtype = f64)",
        "%3: f64[6, 8] = aten.index_add(%2, 0, %1, %0)",
        f"%4: f64[6, 8] = comm.all_reduce(%3) {SUM}", "return %4",
    ),
    "columns gathered: transposed, and joined": (
        '%0 "x": f64[2, 4] {tp: S(1)}',
        "%1: f64[4, 2] = aten.t(%0)", "%2: f64[16, 2] = comm.all_gather(%1) {axis = tp}",
        "%3: f64[2, 16] = aten.t(%2)", "%4: f64[8, 4] = comm.all_gather(%0) {axis = tp}",
        "%5: f64[8, 4] = aten.mul.Tensor(%4, 2)", "%6: f64[4, 2, 4] = aten.view(%5, [4, 2, 4])",
        "%7: f64[2, 4, 4] = aten.permute(%6, [1, 0, 2])",
        "%8: f64[2, 16] = aten.reshape(%7, [2, 16])", "%9: f64[2, 16] = aten.add.Tensor(%3, %8)",
        "return %9",
    ),
    "padding trimmed after a gather": (
        '%0 "x": f64[2, 8] {tp: S(0)}', "%1: f64[8, 8] = comm.all_gather(%0) {axis = tp}",
        "%2: f64[7, 8] = aten.slice.Tensor(%1, 0, 0, 7)", "return %2",
    ),
    "weights in another type": (
        '%0 "rows": bf16[4, 8] {tp: P}, %1 "w": f32[4, 1]',
        "%2: f32[4, 8] = aten.mul.Tensor(%0, %1)",
        "%3: bf16[4, 8] = aten._to_copy(%2, dtype = bf16)",
        f"%4: bf16[4, 8] = comm.all_reduce(%3) {SUM}", "return %4",
    ),
    "a column-parallel layer with a bias, then a row-parallel one": (
        '%0 "x": f64[4, 8], %1 "w": f64[6, 8] {tp: S(0)}, %2 "b": f64[6] {tp: S(0)}, '
        '%3 "v": f64[8, 6] {tp: S(1)}',
        "%4: f64[4, 6] = aten.linear(%0, %1, %2)", "%5: f64[4, 8] = aten.linear(%4, %3)",
        f"%6: f64[4, 8] = comm.all_reduce(%5) {SUM}", "return %6",
    ),
    "an op without a rule may reduce inside": (
        '%0 "x": f64[4, 8] {tp: P}', "%1: f64[4, 8] = aten.as_strided(%0, [4, 8], [8, 1])",
        "%2: f64[4, 8] = aten.silu(%1)", "return %2",
    ),
    "sequence parallelism": (
        '%0 "x": f64[2, 8] {tp: S(0)}, %1 "w": f64[8], %2 "up": f64[8, 6] {tp: S(1)}, '
        '%3 "down": f64[6, 8] {tp: S(0)}',
        "%4: f64[2, 8] = aten.rms_norm(%0, [8], %1)",
        "%5: f64[8, 8] = comm.all_gather(%4) {axis = tp}", "%6: f64[8, 6] = aten.mm(%5, %2)",
        "%7: f64[8, 8] = aten.mm(%6, %3)", f"%8: f64[2, 8] = comm.reduce_scatter(%7) {SUM}",
        "%9: f64[2, 8] = aten.add.Tensor(%0, %8)",
        "%10: f64[8, 8] = comm.all_gather(%9) {axis = tp}", "return %10",
    ),
    "a group that is no axis": (
        '%0 "x": f64[4] {dp: V, tp: V}',
        '%1: f64[4] = comm.all_reduce(%0) {group = "odd", op = sum}', "return %1",
    ),
}  # fmt: skip
MESHES = {
    "an all_reduce by hand, piece by piece": "mesh <dp = 2, tp = 2>",
    "a group that is no axis": 'mesh <dp = 2, tp = 2>\ngroup "odd" = [[0, 3], [1, 2]]',
}


@pytest.mark.parametrize("name", PATTERNS)
def test_silent(name: str) -> None:
    graph = function(*PATTERNS[name], mesh=MESHES.get(name, "mesh <tp = 4>"))
    assert [str(found) for found in findings(graph)] == []


def test_random_graphs_that_are_right() -> None:
    for seed in range(share(200)):
        _, graph = placed_graph(seed)
        wrong = [f for f in findings(graph) if f.rule != "unused-collective"]
        assert [str(found) for found in wrong] == [], seed


def test_placements_are_those_by_construction() -> None:
    """And what is built is right: every value's parts put together are the global tensor."""
    for seed in range(share(60)):
        placed, graph = placed_graph(seed)
        facts = LintFacts(graph)
        for value in placed.pool:
            placements = {axis: facts.placement(value.node, axis) for axis in facts.axes}
            assert placements == value.held, (seed, value.node.name)
        returned = access.results(access.output(graph.graph))
        ranks = dict(zip(returned, simulate(graph, placed.given), strict=True))
        for value in (value for value in placed.pool if value.node in ranks):
            held = ranks[value.node]
            for axis in reversed(MESH.axes):
                pairs = list(zip(held[::2], held[1::2], strict=True))
                dim = getattr(value.held[axis], "dim", None)
                held = [a if dim is None else torch.cat((a, b), dim) for a, b in pairs]
            torch.testing.assert_close(held[0], value.whole)


def over_other_ranks(graph: SpmdGraph, rng: random.Random) -> SpmdGraph:
    draft = Draft.of(graph, rng)
    wait, found = draft.pick(draft.waits(Kind.ALL_REDUCE))
    other = draft.pick(g for g in ("tp", "ep", "both") if g != found.group)
    (started,) = access.operands(wait)
    started.args = (found.operand, found.op, other)
    return draft.finish()


@pytest.mark.parametrize(
    ("mutation", "least"),
    [
        (partial(mutant, name="drop_collective"), 0.95),
        (partial(mutant, name="duplicate_collective"), 0.95),
        (partial(mutant, name="reduce_later"), 0.95),
        (over_other_ranks, 0.95),
        (partial(mutant, name="wrong_reduction"), 0.8),
    ],
)
def test_mistakes_in_random_graphs_are_found(
    mutation: Callable[..., SpmdGraph], least: float
) -> None:
    """Of the mutants whose outputs differ; not found are those that stay plausible.

    Such as the average of a partial sum that was divided by something before.
    """
    found = total = 0
    for seed in range(share(60)):
        placed, graph = placed_graph(seed)
        try:
            wrong = mutation(graph, rng=random.Random(seed))
        except NothingToBreakError:
            continue
        sides = (simulate(g, placed.given) for g in (graph, wrong))
        same = all(
            torch.allclose(a, b)
            for x, y in zip(*sides, strict=True)
            for a, b in zip(x, y, strict=True)
        )
        if not same:
            total += 1
            found += bool([f for f in findings(wrong) if f.rule != "unused-collective"])
    assert total >= share(10)
    assert found >= least * total, (found, total)
