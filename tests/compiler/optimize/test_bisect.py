"""The rewrite at fault is named, with its sites."""

import pytest

from compiler.check import Verdict
from compiler.optimize.bisect import IsRight, culprit, gives_the_same, is_proved, rewrites
from compiler.plan.planner_options import PlannerOptions
from tests.compiler.optimize.wrong_passes import Raising, Wrong, graph, use

COST = PlannerOptions("cost")


@pytest.mark.parametrize("judge", [is_proved, gives_the_same])
def test_the_rewrite_at_fault_is_named(judge: IsRight, monkeypatch: pytest.MonkeyPatch) -> None:
    use(Wrong, monkeypatch)
    source = graph()
    wrong = culprit(source, rewrites(source, COST), judge(source))  # type: ignore[arg-type, call-arg]
    assert wrong is not None
    assert wrong.record.name == "place-reductions"
    assert wrong.report.verdict is Verdict.NOT_EQUIVALENT
    assert len(wrong.sites) == 6
    assert "aten.add.Tensor" in wrong.report.explanation


@pytest.mark.parametrize("judge", [is_proved, gives_the_same])
def test_right_rewrites_have_no_culprit(judge: IsRight) -> None:
    source = graph()
    assert culprit(source, rewrites(source, COST), judge(source)) is None  # type: ignore[arg-type, call-arg]


def test_a_pass_that_raises_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    use(Raising, monkeypatch)
    with pytest.raises(AssertionError) as caught:
        rewrites(graph(), COST)
    assert caught.value.__notes__ == ["in pass place-reductions (5)"]
