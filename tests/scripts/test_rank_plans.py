"""Plans of one rank: what they save by part, and how they run where there are no other ranks."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from compiler.ir.collectives import OPS, Kind
from models.step3p5 import Step3p5Config, Step3p5ForCausalLM
from scripts import rank_plans
from scripts.rank_models import captured, prefill_call, random_model
from scripts.rank_plans import Plans, savings
from tests.support.machines import machine

RANKS, TOKENS = 8, 64


@pytest.fixture
def model() -> Iterator[Step3p5ForCausalLM]:
    dist.init_process_group("fake", rank=0, world_size=RANKS)
    with torch.no_grad():
        yield random_model(Step3p5Config.small(num_hidden_layers=2), "cpu", torch.float32)
    dist.destroy_process_group()


def test_shares_run_without_other_ranks(
    model: Step3p5ForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = machine(RANKS, memory=10)
    monkeypatch.setattr(rank_plans, "load_machine", lambda _: slow)
    args, kwargs = prefill_call(TOKENS, model.config.vocab_size, "cpu")
    plan = Plans(model, captured(model, (args, kwargs)).capture, "round").at(TOKENS)
    assert plan.verdict == "EQUIVALENT"
    assert Kind.REDUCE_SCATTER in [kind for kind, _ in plan.traffic]
    ran = plan.module(*args, **kwargs)
    assert ran.shape == model(*args, **kwargs).shape
    assert ran.isfinite().all()
    kept = [n for n in plan.module.graph_module(TOKENS).graph.nodes if n.target in OPS]
    assert {OPS[n.target] for n in kept} <= {Kind.ALL_REDUCE}


def test_savings_are_differences_of_parts() -> None:
    spent = {
        "as written": {"collectives": 9.0, "router": 5.0},
        "merged": {"collectives": 6.0, "router": 5.0},
        "planned": {"collectives": 7.0, "router": 1.0},
    }
    assert savings(spent) == {
        "merged collectives": 3.0, "collectives on shares": -1.0, "router, on shares": 4.0,
        "norms, on shares": 0.0, "additions and the rest, on shares": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("model.layers.3.moe.gate", "router"),
        ("model.layers.3.mlp.gate_proj", rank_plans.REST),
        ("model.layers.3.input_layernorm", "norms"),
        ("model.layers.3", rank_plans.REST),
    ],
)
def test_parts_by_module(path: str, part: str) -> None:
    assert rank_plans.part_of(path) == part
