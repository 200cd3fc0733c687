"""Marked regions on rows that are sent: the same function, in lockstep; refusals."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from compiler.capture import capture_ranks
from compiler.check import Verdict, check
from compiler.check.simulate import draw_inputs, simulate
from compiler.cost import Launch
from compiler.ir.collectives import Kind, collective
from compiler.ir.dispatch import COMBINE_ROWS, DISPATCH_ROWS
from compiler.ir.graph import SpmdGraph
from compiler.ir.remark import RemarkKind
from compiler.optimize import optimize
from compiler.plan.planner import Planner
from compiler.plan.planner_options import PlannerOptions
from models.step3p5 import Step3p5Config, Step3p5ForCausalLM
from passes import DispatchRows, EliminateDeadCode
from tests.support.machines import machine

RANKS = 4


def planned(share_expert: str = "replicated", experts: str = "ep") -> tuple[SpmdGraph, list[str]]:
    """A small model's graph, planned for many tokens, and what was not sent."""

    def build() -> Step3p5ForCausalLM:
        return Step3p5ForCausalLM(
            Step3p5Config.small(num_hidden_layers=3),
            group=dist.group.WORLD, experts=experts, share_expert=share_expert, device="meta",
            dtype=torch.float32,
        )  # fmt: skip

    ids = torch.zeros(1, 9, dtype=torch.int64, device="meta")
    captured = capture_ranks(build, lambda: ((ids, torch.zeros_like(ids)), {}), RANKS)
    cheap = machine(RANKS, all_to_all_fs=100_000, memory=10**6)
    search = PlannerOptions(machine=cheap, launch=Launch.EAGER)
    planner = Planner(captured.graph, search)
    found = optimize(planner, planner.decide(4096), tokens=4096)
    return found.spmd, [r.reason for r in found.remarks if "not sent" in r.reason]


@pytest.fixture(scope="module")
def graphs() -> tuple[SpmdGraph, SpmdGraph]:
    before, unsent = planned()
    assert not unsent
    result = DispatchRows(before.dispatched).apply(before)
    assert [r.kind for r in result.remarks] == [RemarkKind.PASSED]
    return before, EliminateDeadCode().apply(result.graph).graph


def count(graph: SpmdGraph, target: object) -> int:
    return sum(n.target is target for n in graph.graph.nodes)


def test_gathers_and_the_reduce_scatter_are_gone(graphs: tuple[SpmdGraph, SpmdGraph]) -> None:
    after = graphs[1]
    assert count(after, DISPATCH_ROWS) == count(after, COMBINE_ROWS) == 1
    kinds = [
        [c.kind for n in g.graph.nodes if (c := collective(n)) and n.target is not c.result]
        for g in graphs
    ]
    left = [{kind: each.count(kind) for kind in Kind} for each in kinds]
    assert left[1][Kind.ALL_GATHER] < left[0][Kind.ALL_GATHER]
    assert left[1][Kind.REDUCE_SCATTER] < left[0][Kind.REDUCE_SCATTER]


@pytest.mark.parametrize("tokens", [2, 3, 4, 5, 9, 17])
def test_lockstep(graphs: tuple[SpmdGraph, SpmdGraph], tokens: int) -> None:
    inputs = draw_inputs(graphs[0], 0, tokens)
    want, got = (simulate(g, inputs, exact=True) for g in graphs)
    for a, b in zip(want, got, strict=True):
        for x, y in zip(a, b, strict=True):
            assert torch.allclose(x, y, rtol=1e-9, atol=1e-9)


def test_the_checker_shows_it_alone(graphs: tuple[SpmdGraph, SpmdGraph]) -> None:
    assert check(*graphs).verdict is Verdict.EQUIVALENT


@pytest.mark.parametrize(("share_expert", "experts"), [("tp", "ep"), ("replicated", "tp")])
def test_what_cannot_be_sent_is_said(share_expert: str, experts: str) -> None:
    graph, unsent = planned(share_expert, experts)
    assert unsent == ["rows are not sent to experts: every rank computes all rows"]
    assert not graph.dispatched
