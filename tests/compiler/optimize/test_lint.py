"""``lint`` as a function: graphs, models on one rank of many, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch

from compiler import CommPlanError, Mesh, Partial, lint
from compiler.analysis.lint import RULES, findings
from compiler.capture import capture_ranks
from models.step3p5 import entry
from tests.graphs import function

FOUR = "mesh <tp = 4>"
X = '%0 "x": f64[4, 8] {tp: P}'
SUM = "{axis = tp, op = sum}"


def test_a_graph_module_with_placements() -> None:
    graph = function(X, "return %0", mesh=FOUR)
    (found,) = lint(graph.module, mesh=Mesh({"tp": 4}), inputs={"x": Partial()})
    assert found.rule == "partial-output"
    assert found.rule in RULES
    reduced = function(X, f"%1: f64[4, 8] = comm.all_reduce(%0) {SUM}", "return %1", mesh=FOUR)
    assert lint(reduced.module, mesh=Mesh({"tp": 4}), inputs={"x": Partial()}) == []
    assert lint(reduced) == []


def test_a_model_needs_arguments() -> None:
    with pytest.raises(CommPlanError, match="needs arguments to be captured with"):
        lint(torch.nn.Linear(2, 2))


def test_the_documentation_lists_every_rule() -> None:
    text = (Path(__file__).parents[3] / "docs" / "lint.md").read_text()
    for rule, what in RULES.items():
        assert f"| {rule} | {what}" in text


def test_step3p5_has_no_finding() -> None:
    made: dict[str, Any] = {}

    def factory() -> torch.nn.Module:
        made["model"], made["args"], *_ = entry.prefill(experts="ep", layers=4)
        return made["model"]

    captured = capture_ranks(factory, lambda: (made["args"], {}), 8)
    assert list(findings(captured.graph, captured.mutations)) == []
