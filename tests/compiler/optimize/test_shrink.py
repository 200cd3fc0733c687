"""A failing graph becomes a small one that still fails."""

from collections import Counter

import pytest

from compiler.ir.graph import SpmdGraph
from compiler.ir.placement import Replicate
from compiler.ir.text import parse_graph
from compiler.optimize.bisect import culprit, is_proved, rewrites
from compiler.optimize.shrink import shrink, text_of
from compiler.plan.planner_options import PlannerOptions
from tests.compiler.optimize.wrong_passes import Wrong, graph, use

COST = PlannerOptions("cost")


def ops(small: SpmdGraph) -> list[str]:
    return [str(n.target) for n in small.graph.nodes if n.op == "call_function"]


def test_what_an_op_needs_is_all_that_is_left() -> None:
    small = shrink(graph(), lambda g: "aten.mul.Tensor" in ops(g))
    assert ops(small) == ["aten.mul.Tensor"]
    assert len(small.graph.nodes) == 3  # with its input and the output


def test_a_value_that_becomes_an_input_has_its_placement() -> None:
    small = shrink(graph(), lambda g: "aten.silu.default" in ops(g))
    assert ops(small) == ["aten.silu.default"]
    assert list(small.inputs.values()) == [(Replicate(),)]


def test_a_wrong_pass_leaves_its_site(monkeypatch: pytest.MonkeyPatch) -> None:
    use(Wrong, monkeypatch)
    tried = Counter[str]()

    def fails(g: SpmdGraph) -> bool:
        tried["graphs"] += 1
        wrong = culprit(g, rewrites(g, COST), is_proved(g))
        return wrong is not None and wrong.record.name == "place-reductions"

    small = shrink(graph(), fails)
    assert len([op for op in ops(small) if "all_reduce" in op]) == 2
    assert len(small.graph.nodes) == 8
    again = parse_graph(text_of(small))
    wrong = culprit(again, rewrites(again, COST), is_proved(again))
    assert wrong is not None
    assert [site.value for site in wrong.sites] == ["%v10", "%v12"]
    assert tried["graphs"] < 60


def test_there_is_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    source = graph()
    assert len(shrink(source, lambda g: True, seconds=0.0).graph.nodes) == len(source.graph.nodes)
