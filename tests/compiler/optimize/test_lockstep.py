"""A whole model in lockstep: every policy gives what the author's graph gives, on every rank."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist

from compiler.capture import Capture, capture_ranks
from compiler.check import Verdict
from compiler.check.simulate import PerRank, draw_inputs, simulate
from compiler.ir.graph import SpmdGraph
from compiler.optimize import optimize
from compiler.plan.planner import Planner
from compiler.plan.planner_options import PlannerOptions
from models.step3p5 import Step3p5Config, Step3p5ForCausalLM
from tests.support.machines import machine

RANKS = 4
COUNTS = (2, RANKS - 1, RANKS, RANKS + 1, 2 * RANKS, 2 * RANKS + 1)
SEARCHES = {
    "cost": PlannerOptions("cost"),
    "cost on a machine": PlannerOptions("cost", machine(RANKS, memory=10**6)),
    "merge": PlannerOptions("merge"),
    "boundary": PlannerOptions("boundary"),
    "off": PlannerOptions("off"),
}


@cache
def captured(experts: str, tokens: int) -> Capture:
    """A prompt of a small model on four ranks; from two tokens on, their number is symbolic."""

    def build() -> Step3p5ForCausalLM:
        return Step3p5ForCausalLM(
            Step3p5Config.small(num_hidden_layers=3),
            group=dist.group.WORLD, experts=experts, device="meta", dtype=torch.float32,
        )  # fmt: skip

    ids = torch.zeros(1, tokens, dtype=torch.int64, device="meta")
    return capture_ranks(build, lambda: ((ids, torch.zeros_like(ids)), {}), RANKS)


def results(search: PlannerOptions, found: Capture) -> Iterator[tuple[SpmdGraph, list[int]]]:
    """Proved graphs, each with counts that it runs at."""
    result = optimize(Planner(found.graph, search, sizes=found.ranges))
    assert {each.verdict for each in result.ranges} <= {Verdict.EQUIVALENT, Verdict.IDENTICAL}
    for graph in dict.fromkeys(each.spmd for each in result.ranges):
        counts = COUNTS if result.symbol else ()
        yield graph, [n for n in counts if result.table.plan(n).spmd is graph]


@cache
def wanted(graph: SpmdGraph, tokens: int) -> tuple[dict[str, PerRank], list[PerRank]]:
    inputs = draw_inputs(graph, 0, tokens)
    return inputs, simulate(graph, inputs, exact=True)


def assert_same(source: SpmdGraph, target: SpmdGraph, tokens: int) -> None:
    inputs, want = wanted(source, tokens)
    for a, b in zip(want, simulate(target, inputs, exact=True), strict=True):
        for x, y in zip(a, b, strict=True):
            assert torch.allclose(x, y, rtol=1e-9, atol=1e-9), tokens


@pytest.mark.parametrize("policy", SEARCHES)
@pytest.mark.parametrize("experts", ["tp", "ep"])
def test_every_number_of_tokens(experts: str, policy: str) -> None:
    found = captured(experts, 9)
    ran: list[Any] = []
    for graph, counts in results(SEARCHES[policy], found):
        for tokens in counts:
            assert_same(found.graph, graph, tokens)
        ran += counts
    assert sorted(ran) == sorted(COUNTS)


@pytest.mark.parametrize("policy", SEARCHES)
def test_a_single_token(policy: str) -> None:
    found = captured("tp", 1)
    for graph, _ in results(SEARCHES[policy], found):
        assert_same(found.graph, graph, 1)
