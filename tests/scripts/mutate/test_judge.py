"""The judge decides by simulation alone, and says where it disagrees with the checker."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from compiler.check import Verdict
from scripts.mutate import Outcome, Pair, judge, judged
from scripts.mutate.judge import Draw, drawn, same
from tests.support.graphs import function

X = '%0 "x": f64[4, 4]'
DOUBLED = function(X, "%1: f64[4, 4] = aten.mul.Tensor(%0, 2)", "return %1")
ADDED = function(X, "%1: f64[4, 4] = aten.add.Tensor(%0, %0)", "return %1")
HALVED = function(X, "%1: f64[4, 4] = aten.mul.Tensor(%0, 0.5)", "return %1")
PAIR = Pair("doubled", DOUBLED, ADDED)


@pytest.mark.parametrize(
    ("target", "verdict", "outcome"),
    [
        (ADDED, Verdict.EQUIVALENT, Outcome.EQUAL),
        (ADDED, Verdict.UNPROVED, Outcome.EQUAL),
        (ADDED, Verdict.NOT_EQUIVALENT, Outcome.REFUTED),
        (HALVED, Verdict.EQUIVALENT, Outcome.ACCEPTED),
        (HALVED, Verdict.IDENTICAL, Outcome.ACCEPTED),
        (HALVED, Verdict.UNPROVED, Outcome.UNPROVED),
        (HALVED, Verdict.NOT_EQUIVALENT, Outcome.NOT_EQUIVALENT),
        (ADDED, Verdict.INVALID, Outcome.INVALID),
    ],
)
def test_outcomes(
    target: object, verdict: Verdict, outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "check", lambda *_: SimpleNamespace(verdict=verdict))
    assert judged(PAIR, target)[0] is outcome  # type: ignore[arg-type]


def test_differences_name_the_draw_the_output_and_the_rank() -> None:
    assert PAIR.judge.difference(ADDED) == ""
    assert "seed=101, bound=2, tokens=None): output 0 on rank 0" in PAIR.judge.difference(HALVED)
    twice = function(X, "%1: f64[4, 4] = aten.mul.Tensor(%0, 2)", "return %1, %1")
    assert PAIR.judge.difference(twice) == "1 outputs against 2"


def test_graph_that_cannot_run_on_some_rank_is_a_difference() -> None:
    beyond = "%1: f64[2, 4] = aten.narrow(%0, 0, rank(0, 2, 2, 3), 2)"
    graph = function(X, beyond, "%2: f64[4, 4] = aten.mul.Tensor(%0, 2)", "return %2")
    assert "does not run" in PAIR.judge.difference(graph)


def test_rounding_is_seen_in_the_types_of_the_graph_only() -> None:
    rounded = function(
        X, "%1: bf16[4, 4] = aten._to_copy(%0, dtype = bf16)",
        "%2: f64[4, 4] = aten._to_copy(%1, dtype = f64)",
        "%3: f64[4, 4] = aten.mul.Tensor(%2, 0.3)", "return %3",
    )  # fmt: skip
    plain = function(X, "%1: f64[4, 4] = aten.mul.Tensor(%0, 0.3)", "return %1")
    inner = function(
        X, "%1: f64[4, 4] = aten.mul.Tensor(%0, 0.3)",
        "%2: bf16[4, 4] = aten._to_copy(%1, dtype = bf16)",
        "%3: f64[4, 4] = aten._to_copy(%2, dtype = f64)", "return %3",
    )  # fmt: skip
    pair = Pair("plain", plain, plain)
    assert pair.judge.difference(inner) == ""
    assert pair.judge.difference(inner, exact=False) != ""
    assert pair.judge.difference(rounded, exact=False) == ""  # inputs are multiples of 1/8


def test_what_depends_on_padding_is_a_difference() -> None:
    rows = '%0 "x": f64[5, 4]'
    whole = function(rows, "%1: f64[4] = aten.sum.dim_IntList(%0, [0])", "return %1")
    padded = function(
        rows, "%1: f64[8, 4] = commplan.pad_rows(%0, 0, 4)",
        "%2: f64[4] = aten.sum.dim_IntList(%1, [0])", "return %2",
    )  # fmt: skip
    assert "output 0" in Pair("rows", whole, whole).judge.difference(padded)


def test_integers_are_drawn_below_their_bound_and_alike_where_they_must_be() -> None:
    graph = function('%0 "i": i64[64], %1 "j": i64[64] {tp: V}, %2 "x": f64[2]', "return %0, %1")
    held = drawn(graph, Draw(seed=1, bound=5))
    assert set(torch.cat(held["i"]).tolist()) == set(range(5))
    assert all(x.equal(held["i"][0]) for x in held["i"])
    assert not held["j"][0].equal(held["j"][1])
    assert drawn(graph, Draw(seed=1))["x"][0].equal(held["x"][0])


@pytest.mark.parametrize(
    ("want", "got", "agree"),
    [
        ([1.0, 2.0], [1.0, 2.0 + 1e-9], True),
        ([1.0, 2.0], [1.0, 2.0 + 1e-6], False),
        ([1e-20], [2e-20], True),
        ([torch.nan, 1.0], [torch.nan, 1.0], True),
        ([torch.nan, 1.0], [0.0, 1.0], False),
        ([torch.inf, 1.0], [torch.inf, 1.0], True),
        ([torch.inf, 1.0], [1e300, 1.0], False),
        ([1.0], [1.0, 1.0], False),
        ([], [], True),
    ],
)
def test_same(want: list[float], got: list[float], agree: bool) -> None:
    x, y = (torch.tensor(held, dtype=torch.float64) for held in (want, got))
    assert same(x, y) is agree


def test_numbers_are_the_same_if_they_are_equal() -> None:
    assert same(3, 3)
    assert not same(3, 4)
    assert not same(3, torch.tensor(3))
