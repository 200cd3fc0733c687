"""Batches: nothing wrong is accepted, nothing right is refused, and both would be reported."""

from __future__ import annotations

import pytest

from compiler.check import Report, Verdict
from compiler.ir.text import parse_graph
from scripts.mutate import MUTATIONS, Outcome, campaign, judge
from tests.support.seeds import share


def test_no_mutant_is_accepted() -> None:
    tally = campaign.mutants(seed=1, count=share(300), models={})
    assert [f.title for f in tally.findings] == []
    kinds = {name for name, _ in tally.counts}
    assert len(kinds) > 0.9 * len(MUTATIONS)
    broken = {str(o): sum(n for (_, how), n in tally.counts.items() if how == o) for o in Outcome}
    assert broken[Outcome.NOT_EQUIVALENT] > share(240), broken
    assert sum(broken.values()) - broken[Outcome.EQUAL] == share(300)


def test_no_random_graph_is_mis_optimized_or_refused() -> None:
    tally = campaign.random_graphs(first=0, count=share(200))
    assert [f.title for f in tally.findings] == []
    assert tally.counts["graphs", "EQUIVALENT"] + tally.counts["graphs", "IDENTICAL"] == share(200)
    assert tally.counts["communication changed", "graphs"] > share(50)
    assert tally.counts["all_reduces", "after"] < tally.counts["all_reduces", "before"]


def test_rewrites_by_hand_are_proved() -> None:
    tally = campaign.rewritten_by_hand(first=0, count=share(150))
    assert [f.title for f in tally.findings] == []
    unproved = sum(n for (_, verdict), n in tally.counts.items() if verdict == "UNPROVED")
    assert sum(tally.counts.values()) == share(150)
    assert unproved <= 0.02 * share(150)


def test_batches_are_reproducible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "POOL", 3)
    runs = [campaign.mutants(seed=7, count=12, models={}) for _ in range(2)]
    assert runs[0].counts == runs[1].counts
    assert runs[0].counts != campaign.mutants(seed=8, count=12, models={}).counts


def test_checker_that_accepts_everything_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "check", lambda *_: Report(Verdict.EQUIVALENT, "looks fine"))
    tally = campaign.mutants(seed=2, count=10, models={})
    titles = [f.title for f in tally.findings]
    assert len(titles) == 10
    assert all(t.startswith("seed 2: ") and t.endswith("wrongly accepted") for t in titles)
    found = tally.findings[0]
    assert set(found.graphs) == {"source", "target", "mutant"}
    assert found.graphs["mutant"] != found.graphs["target"]
    for text in found.graphs.values():
        parse_graph(text)


def test_checker_that_refuses_everything_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "check", lambda *_: Report(Verdict.UNPROVED, "who knows"))
    tally = campaign.random_graphs(first=3, count=4)
    assert [f.title for f in tally.findings] == [
        f"random graph {seed}: refused" for seed in range(3, 7)
    ]


def broken(*_: object) -> None:
    raise ValueError("no such case")


def test_crashes_are_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(campaign.pairs, "in_random_order", broken)
        (found,) = campaign.random_graphs(first=3, count=1).findings
    assert found.title == "random graph 3: crashed"
    assert "ValueError: no such case" in found.explanation
    monkeypatch.setattr(campaign, "judged", broken)
    (found,) = campaign.mutants(seed=2, count=1, models={}).findings
    assert found.title.startswith("seed 2: ")
    assert found.title.endswith(": crashed")


def test_mis_optimized_graphs_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    other = campaign.anyhow(4)
    monkeypatch.setattr(campaign.pairs, "in_random_order", lambda *_: other)
    (found,) = campaign.random_graphs(first=3, count=1).findings
    assert found.title == "random graph 3: mis-optimized"
