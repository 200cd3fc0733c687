"""Models whose authors share rows: all_reduces for few tokens, shares for many."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from compiler import Replicate, Varying, optimize_allreduce
from compiler.capture import capture_ranks
from compiler.optimize import optimize
from compiler.optimize.validation import machine_of
from compiler.plan.planner import Planner
from compiler.plan.planner_options import PlannerOptions
from compiler.runtime.counting import count_collectives
from tests.compiler.optimize.models import HIDDEN, SequenceParallel

LAYERS, RANKS = 3, 8


def test_few_tokens_are_reduced_whole_and_many_stay_shared() -> None:
    captured = capture_ranks(
        lambda: SequenceParallel(dist.group.WORLD, LAYERS, 4096, "meta"),
        lambda: ((torch.zeros(64, 512, device="meta", dtype=torch.bfloat16),), {}),
        RANKS,
        inputs={f"norms.{i}": Replicate() for i in range(LAYERS)} | {"x": Varying()},
    )
    options = PlannerOptions("cost", machine_of("h200x8"))
    planner = Planner(captured.graph, options, [], captured.ranges)
    result = optimize(planner)
    assert all(each.verdict.runs for each in result.ranges)
    assert not result.table.uneven
    counts = [each.after.counts for each in result.ranges]
    assert counts[0] == {"all_reduce": LAYERS + 1}
    written = {"reduce_scatter": LAYERS + 1, "all_gather": LAYERS + 1}
    assert counts[-1] == result.before.counts == written
    totals = [each.totals for each in result.ranges if each.totals is not None]
    assert len(totals) == len(result.ranges)
    assert all(t.planned <= min(t.as_written, t.merged) for t in totals)
    assert totals[0].planned < 0.8 * totals[0].as_written
    for tokens in (16, 24, 256, 2048, 4096, 1 << 15):
        cost = planner.time_ps(planner.decide(tokens), tokens)
        assert cost <= planner.time_ps(planner.as_written, tokens)


def run(group: dist.ProcessGroup, machine: str | None) -> dict[str, Any]:
    model, n = SequenceParallel(group, 2), group.size()
    x = torch.linspace(-1, 1, 16 * HIDDEN // n).reshape(16, -1) * (1 + group.rank())
    optimized = optimize_allreduce(
        model, (x,), group=group, machine=machine, inputs={"x": Varying()}
    )
    worst = 0.0
    for tokens in (8, 16, 40):
        given = x.repeat(3, 1)[:tokens]
        with torch.no_grad():
            worst = max(worst, float((model(given) - optimized(given)).abs().max()))
    with count_collectives() as ran, torch.no_grad():
        optimized(x)
    return {"difference": worst, "verdict": optimized.report.verdict, "ran": dict(ran.collectives)}


@pytest.mark.parametrize("machine", [None, "h200x8"])
def test_ranks_run_what_is_planned(gloo_pool: Any, machine: str | None) -> None:
    expected = {"all_reduce": 3} if machine else {"reduce_scatter": 3, "all_gather": 3}
    for result in gloo_pool(4).run(run, machine):
        assert result["verdict"].runs
        assert result["difference"] < 1e-4
        assert result["ran"] == expected
