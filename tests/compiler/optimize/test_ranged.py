"""Plans per range of token counts: what they take, that they are proved, that ranks run them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from compiler import Verdict, optimize_allreduce
from compiler.analysis.statistics import statistics
from compiler.capture import Capture, capture
from compiler.cost import Launch, MachineError
from compiler.optimize import optimize
from compiler.plan.planner import Planner
from compiler.plan.planner_options import POLICIES, PlannerOptions
from compiler.plan.token_ranges import LAST_TOKENS, TokenRange, TokenTable
from compiler.runtime.counting import count_collectives
from models.step3p5 import Step3p5Config, Step3p5ForCausalLM
from tests.compiler.optimize.models import HIDDEN, Stack
from tests.support.machines import machine

COUNTS = (1, 2, 3, 4, 5, 7, 8, 9, 63, 64, 65, 1000, 1001, 4096)


@pytest.fixture(scope="module")
def stack() -> Capture:
    dist.init_process_group("fake", rank=0, world_size=4)
    try:
        return capture(Stack(dist.group.WORLD), (torch.ones(6, HIDDEN),))
    finally:
        dist.destroy_process_group()


def planner(found: Capture, **options: Any) -> Planner:
    search = PlannerOptions(**{"machine": machine(4), **options})
    return Planner(found.graph, search, sizes=found.ranges)


@pytest.mark.parametrize("memory", [200, 1000, 10**6])
def test_planned_never_takes_longer_than_merged_nor_merged_than_as_written(
    stack: Capture, memory: int
) -> None:
    plans = planner(stack, machine=machine(4, memory=memory))
    table = plans.table
    assert plans.symbol is not None
    ends = [count for r in table.ranges() for count in (r.first, r.last)]
    for tokens in (*COUNTS[1:], *ends):  # a single token is another graph
        found = plans.totals(table.plan(tokens), tokens)
        assert found.bound is not None
        assert found.bound <= found.planned <= found.merged <= found.as_written, tokens


def test_the_time_of_a_plan_is_that_of_its_graph(stack: Capture) -> None:
    """What is known without writing the graph is what the written graph takes."""
    plans = planner(stack)
    for tokens in COUNTS:
        decided = plans.decide(tokens)
        written = plans.write(decided)
        off = PlannerOptions("off", plans.options.machine)
        again = Planner(written.graph, off, ()).as_written
        assert plans.time_ps(again, tokens) == plans.time_ps(decided, tokens), tokens


def test_ranges_differ_where_sharing_begins_to_pay(stack: Capture) -> None:
    result = optimize(planner(stack))
    assert {each.verdict for each in result.ranges} == {Verdict.EQUIVALENT}
    assert result.table.ranks == 4
    few, many = (result.table.plan(n).after.counts for n in (2, 4096))
    assert few == {"all_reduce": 2}
    assert many["reduce_scatter"] == 2
    assert result.table.even[-1].last == LAST_TOKENS
    assert [each.totals and each.totals.tokens for each in result.ranges] == [
        each.plan.tokens for each in result.ranges
    ]


def test_plans_count_payloads_at_their_own_tokens(stack: Capture) -> None:
    result = optimize(planner(stack))
    assert [each.plan.tokens for each in result.ranges] == [r.first for r in result.table.ranges()]
    for each in result.ranges:
        tokens, (stage,) = each.plan.tokens, each.plan.stages
        assert stage.before_payload_bytes == statistics(stack.graph.graph, tokens).payload_bytes
    assert optimize(planner(stack, machine=None)).plan.tokens == 6, "the call's, as it was made for"
    plan = planner(stack).decide(4096).plan("cost", 6)
    (stage,) = plan.stages
    assert (plan.tokens, stage.before_payload_bytes) == (6, 3 * 6 * HIDDEN * 4)


def test_without_a_machine_or_for_another_policy_there_is_one_plan(stack: Capture) -> None:
    for policy in POLICIES:
        for known in (None, machine(4)):
            if policy == "cost" and known is not None:
                continue
            plans = planner(stack, policy=policy, machine=known)
            assert len(optimize(plans).ranges) == 1


def test_launches_are_part_of_the_price(stack: Capture) -> None:
    eager, graph = (planner(stack, launch=launch) for launch in (Launch.EAGER, Launch.GRAPH))
    assert eager.time_ps(eager.as_written, 8) > graph.time_ps(graph.as_written, 8)


def test_a_machine_that_does_not_know_the_group_is_an_error(stack: Capture) -> None:
    with pytest.raises(MachineError):
        optimize(planner(stack, machine=machine(2)))


def test_without_link_rates_there_is_no_bound(stack: Capture) -> None:
    plans = planner(stack, machine=machine(4, link=False))
    assert plans.totals(plans.decide(8), 8).bound is None


def on_ranks(group: dist.ProcessGroup) -> dict[str, Any]:
    model = Stack(group)
    x = torch.ones(6, HIDDEN)
    optimized = optimize_allreduce(model, (x,), group=group, machine=machine(4))
    found: dict[str, Any] = {"text": str(optimized.report), "worst": 0.0}
    before = optimized.report.before
    found["payload"] = (before.payload_bytes, before.all_reduces * x.nbytes)
    for tokens in COUNTS:
        x = torch.linspace(-1, 1, tokens * HIDDEN).reshape(tokens, HIDDEN)
        got = optimized(x)
        with count_collectives() as ran:
            optimized(x)
        found[f"{tokens}"] = dict(ran.collectives)
        found["worst"] = max(found["worst"], float((got - model(x)).abs().max()))
        graph = optimized.graph_module(tokens)
        names = [str(n.target) for n in graph.graph.nodes]
        found[f"{tokens} graph"] = sum("reduce_scatter" in name for name in names)
    found["graphs"] = len(optimized.prepared)
    return found


def test_ranks_run_the_plan_of_the_range(gloo_pool: Any) -> None:
    for found in gloo_pool(4).run(on_ranks):
        assert found["worst"] < 1e-5
        assert found["2"] == {"all_reduce": 2}
        assert found["2 graph"] == 0
        assert found["4096"]["reduce_scatter"] == found["4096 graph"] == 2
        assert "multiples of 4" in found["text"]
        assert "ms predicted" in found["text"]
        assert " after at 6 tokens; verdict" in found["text"]
        assert found["payload"][0] == found["payload"][1], "of the call that was captured"
        assert found["graphs"] == 2, "one for a single token, one for more"


def step3p5(group: dist.ProcessGroup, experts: str, launch: str) -> dict[str, Any]:
    config = Step3p5Config.small(2, moe_layers_enum="1")  # one layer of each kind
    model = Step3p5ForCausalLM(config, group=group, experts=experts, dtype=torch.float32).eval()
    slow = machine(group.size(), start_ns=100_000)
    optimized = optimize_allreduce(model, group=group, machine=slow, launch=launch)
    found: dict[str, Any] = {"counts": set()}
    calls = [(1, 2), (1, 9), (1, 16), (1, 33), (1, 256), (1, 257), (5, 1), (8, 1), (64, 1)]
    for batch, tokens in calls:
        ids = (torch.arange(batch * tokens) * 7 % config.vocab_size).reshape(batch, tokens)
        positions = torch.arange(tokens).expand(batch, tokens).contiguous()
        with torch.no_grad():
            logits = [m(ids, positions, model.make_cache(batch, 300)) for m in (model, optimized)]
        scale = logits[0].square().mean().sqrt()
        found[f"{batch} x {tokens}"] = float((logits[0] - logits[1]).abs().max() / scale)
        graph = optimized.graph_module(batch * tokens).graph
        found["counts"].add(sum("reduce_scatter" in str(n.target) for n in graph.nodes))
    found["verdicts"] = {
        result.verdict for p in optimized.prepared for result in p.report.result.ranges
    }
    return found


@pytest.mark.parametrize(
    ("ranks", "experts", "launch"),
    [
        (2, "tp", "graph"),
        pytest.param(4, "tp", "graph", marks=pytest.mark.campaign),
        pytest.param(4, "ep", "eager", marks=pytest.mark.campaign),
    ],
)
def test_a_model_by_ranges_of_tokens(gloo_pool: Any, ranks: int, experts: str, launch: str) -> None:
    for found in gloo_pool(ranks).run(step3p5, experts, launch):
        assert max(v for name, v in found.items() if " x " in name) < 5e-5
        assert found["verdicts"] == {Verdict.EQUIVALENT}
        assert len(found["counts"]) > 1, "not one plan for all"


def test_the_greatest_sizes_that_a_graph_runs_for(stack: Capture) -> None:
    result = optimize(planner(stack))
    one, other = result.ranges[0], replace(result.ranges[0], spmd=stack.graph)
    even = (TokenRange(2, 64, one), TokenRange(66, LAST_TOKENS, other))
    uneven = (TokenRange(1, 99, one), TokenRange(101, LAST_TOKENS - 1, other))
    result = replace(result, table=TokenTable(2, even, uneven), symbol="s0")
    assert result.greatest(one.spmd, {"s0": (1, None), "s1": (1, 5)}) == {"s0": 99, "s1": 5}
    assert result.greatest(other.spmd, {"s0": (1, None)}) == {}, "the last range serves for more"
    assert result.greatest(other.spmd, {"s0": (1, 4096)}) == {"s0": 4096}
    assert result.greatest(one.spmd, {"s0": (1, 50)}) == {"s0": 50}
