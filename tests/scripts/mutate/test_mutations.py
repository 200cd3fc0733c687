"""Every mutation changes what a graph computes, and no mutant is accepted."""

from __future__ import annotations

import random
from functools import cache

import pytest

from compiler.check import Verdict, check
from compiler.ir.text import print_graph
from scripts.mutate import (
    MUTATIONS,
    ROUNDING,
    Draft,
    NothingToBreakError,
    Outcome,
    Pair,
    judged,
    mutant,
    pairs,
)
from tests.support.graphs import function

RIGHT = (Outcome.NOT_EQUIVALENT, Outcome.UNPROVED, Outcome.INVALID)


@cache
def pool() -> tuple[Pair, ...]:
    return (*pairs.pairs_by_hand(), *(pairs.random_pair(seed) for seed in range(60)))


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutants_compute_something_else_and_are_not_accepted(name: str) -> None:
    rng, found = random.Random(name), []
    for pair in rng.sample(pool(), len(pool())):
        before = print_graph(pair.target)
        try:
            wrong = mutant(pair.target, name, rng)
        except NothingToBreakError:
            continue
        assert print_graph(pair.target) == before
        assert print_graph(wrong) != before
        outcome, report, difference = judged(pair, wrong, exact=name not in ROUNDING)
        assert outcome in (*RIGHT, Outcome.EQUAL), (pair.name, report.explanation, difference)
        found += [outcome] if outcome is not Outcome.EQUAL else []
        if len(found) == 2:
            break
    assert found, f"no mutant of kind {name} computes anything else"


def test_correct_pairs_are_proved() -> None:
    for pair in pool():
        assert check(pair.source, pair.target).verdict.runs, pair.name
        assert not pair.judge.difference(pair.target), pair.name


def test_mutants_are_reproducible() -> None:
    pair = pool()[0]
    texts = [print_graph(mutant(pair.target, "other_operand", random.Random(3))) for _ in range(2)]
    assert texts[0] == texts[1]
    others = {print_graph(mutant(pair.target, "other_operand", random.Random(s))) for s in range(5)}
    assert len(others) > 1


SUM = "comm.all_reduce({}) {{axis = tp, op = sum}}"


@pytest.mark.parametrize(
    ("name", "lines", "mistake"),
    [
        ("drop_collective",
         [f"%1: f64[4, 4] = {SUM.format('%0')}", "return %1"], "return %0"),
        ("duplicate_collective",
         [f"%1: f64[4, 4] = {SUM.format('%0')}", "return %1"],
         "%2: f64[4, 4]@meta = comm.all_reduce(%1)"),
        ("reduce_later",
         [f"%1: f64[4, 4] = {SUM.format('%0')}", "%2: f64[4, 4] = aten.silu(%1)", "return %2"],
         "aten.silu(%0)"),
        ("missing_wait",
         [f"%1: f64[4, 4] = {SUM.format('%0')}", "return %1"], "all_reduce_start(%0)"),
        ("wrong_dim",
         ["%1: f64[4, 4] = aten.cumsum(%0, 0)", "return %1"], "aten.cumsum(%0, 1)"),
        ("wrong_permutation",
         ["%1: f64[4, 4] = aten.permute(%0, [1, 0])", "return %1"], "aten.permute(%0, [0, 1])"),
        ("rotated_ranks",
         ["%1: f64[2, 4] = aten.narrow(%0, 0, rank(0, 2), 2)", "return %1"], "rank(2, 0)"),
        ("number_of_rank_zero",
         ["%1: f64[2, 4] = aten.narrow(%0, 0, rank(0, 2), 2)", "return %1"], "rank(0, 0)"),
        ("wrong_flag",
         ["%1: f64[4, 1] = aten.sum.dim_IntList(%0, [1], true)", "return %1"],
         "%1: f64[4]@meta = aten.sum.dim_IntList(%0, [1], false)"),
    ],
)  # fmt: skip
def test_mistakes_are_those_that_names_say(name: str, lines: list[str], mistake: str) -> None:
    graph = function('%0 "x": f64[4, 4] {tp: V}', *lines, mesh="mesh <tp = 2>")
    wrong = print_graph(mutant(graph, name, random.Random(0)))
    assert mistake in wrong or mistake.replace("@meta", "") in wrong, wrong


@pytest.mark.parametrize("name", MUTATIONS)
def test_graph_without_a_place_is_left_alone(name: str) -> None:
    empty = function('%0 "x": i32[]', "return %0", mesh="mesh <tp = 2>")
    with pytest.raises(NothingToBreakError):
        mutant(empty, name, random.Random(0))


def test_mistake_that_makes_no_graph_is_none() -> None:
    graph = function(
        '%0 "x": f64[2, 4], %1 "w": f64[4, 3]', "%2: f64[2, 3] = aten.mm(%0, %1)", "return %2"
    )
    draft = Draft.of(graph, random.Random(0))
    (product,) = draft.calls()
    product.args = product.args[::-1]
    draft.touched.add(product)
    with pytest.raises(NothingToBreakError, match=r"\[4, 3\]"):
        draft.finish()


def test_sizes_after_a_mistake_follow_to_the_output() -> None:
    graph = function(
        '%0 "x": f64[8, 4] {tp: V}', "%1: f64[8, 4] = aten.silu(%0)",
        "%2: f64[4, 4] = comm.reduce_scatter(%1) {axis = tp, op = sum}", "return %2",
        mesh="mesh <tp = 2>",
    )  # fmt: skip
    draft = Draft.of(graph, random.Random(0))
    (silu,) = draft.calls()
    draft.wrap(silu, lambda x: draft.after(x, pairs.aten.narrow.default, x, 0, 0, 4))
    wrong = draft.finish()
    assert "f64[2, 4]" in print_graph(wrong)
    assert check(graph, wrong).verdict is Verdict.INVALID
