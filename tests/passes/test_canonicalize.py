"""What the pass removes and what it must keep, as text."""

from __future__ import annotations

import pytest

from compiler.check import Verdict, check
from compiler.ir.text import print_graph
from passes import Canonicalize
from tests.support.graphs import Builder, Mesh, aten, function

X = '%0 "x": f64[4, 8] {tp: V}'
AR = "comm.all_reduce(%0) {axis = tp, op = sum}"

REMOVED = {
    "copy": (["%1: f64[4, 8] = aten.neg(%0)", "%2: f64[4, 8] = aten.copy(%0, %1)",
              "return %2"], ["%1: f64[4, 8] = aten.neg(%0)", "return %1"]),
    "alias": (["%1: f64[4, 8] = aten.alias(%0)", "return %1"], ["return %0"]),
    "detach": (["%1: f64[4, 8] = aten.detach(%0)", "return %1"], ["return %0"]),
    "wait of wait": (
        [f"%1: f64[4, 8] = {AR}", "%2: f64[4, 8] = comm.wait(%1)", "return %2"],
        [f"%1: f64[4, 8] = {AR}", "return %1"],
    ),
    "views back": (
        ["%1: f64[32] = aten.view(%0, [32])", "%2: f64[4, 8] = aten.view(%1, [4, 8])",
         "return %1, %2"],
        ["%1: f64[32] = aten.view(%0, [32])", "return %1, %0"],
    ),
    "view of the same shape": (["%1: f64[4, 8] = aten.view(%0, [4, 8])", "return %1"],
                               ["return %0"]),
    "chain": (
        ["%1: f64[4, 8] = aten.alias(%0)", "%2: f64[4, 8] = aten.detach(%1)",
         "%3: f64[4, 8] = aten.neg(%2)", "return %3"],
        ["%1: f64[4, 8] = aten.neg(%0)", "return %1"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REMOVED)
def test_removes(name: str) -> None:
    before, after = (function(X, *lines) for lines in REMOVED[name])
    text = print_graph(before)
    result = Canonicalize().apply(before)
    assert print_graph(before) == text
    assert result.changed
    assert print_graph(result.graph) == print_graph(after)
    assert result.remarks == ()
    assert check(before, result.graph).verdict is Verdict.EQUIVALENT
    again = Canonicalize().apply(result.graph)
    assert not again.changed
    assert again.graph is result.graph


KEPT = {
    "other shape": ["%1: f64[32] = aten.view(%0, [32])", "return %1"],
    "another element type": [
        "%1: f32[4, 8] = aten.full([4, 8], 0, dtype = f32)",
        "%2: f32[4, 8] = aten.copy(%1, %0)",
        "return %2",
    ],
    "transposed": ["%1: f64[8, 4] = aten.permute(%0, [1, 0])", "return %1"],
    "broadcast": [
        "%1: f64[2, 4, 8] = aten.expand(%0, [2, 4, 8])",
        "%2: f64[2, 4, 8] = aten.copy(%1, %0)",
        "return %2",
    ],
    "all_reduce over several ranks": [f"%1: f64[4, 8] = {AR}", "return %1"],
}


@pytest.mark.parametrize("name", KEPT)
def test_keeps(name: str) -> None:
    graph = function(X, *KEPT[name])
    result = Canonicalize().apply(graph)
    assert (result.changed, result.remarks) == (False, ())
    assert result.graph is graph


def test_keeps_a_copy_into_other_strides() -> None:
    build = Builder(Mesh({"tp": 2}))
    x, d = build.input("x", 4, 4), build.input("d", 4, 4)
    turned = build.call(aten.permute.default, d, [1, 0])
    graph = build.finish(build.call(aten.copy.default, turned, x))
    copied = next(n for n in graph.graph.nodes if n.target is aten.copy.default)
    assert copied.meta["val"].stride() == (1, 4)
    assert not Canonicalize().apply(graph).changed


def test_removes_all_reduces_over_one_rank() -> None:
    for op in ("sum", "avg", "max", "min", "product"):
        graph = function(
            '%0 "x": f64[4] {tp: V}',
            f"%1: f64[4] = comm.all_reduce(%0) {{axis = one, op = {op}}}",
            "%2: f64[4] = aten.neg(%1)",
            "return %2",
            mesh="mesh <tp = 4, one = 1>",
        )
        result = Canonicalize().apply(graph)
        assert [str(r) for r in result.remarks] == [
            "passed: %v1: all_reduce over groups of one rank removed"
        ]
        assert check(graph, result.graph).verdict is Verdict.EQUIVALENT


def test_a_collective_is_waited_for_once() -> None:
    source = function(
        X,
        "%1: f64[4, 8] = comm.all_reduce_start(%0) {axis = tp, op = sum}",
        "%2: f64[4, 8] = comm.wait(%1)",
        "%3: f64[4, 8] = aten.silu(%2)",
        "%4: f64[4, 8] = comm.wait(%1)",
        "return %3, %4",
    )
    found = Canonicalize().apply(source)
    assert (found.changed, found.remarks) == (True, ())
    assert check(source, found.graph).verdict is Verdict.EQUIVALENT
    one = function(X, f"%1: f64[4, 8] = {AR}", "%2: f64[4, 8] = aten.silu(%1)", "return %2, %1")
    assert print_graph(found.graph) == print_graph(one)
