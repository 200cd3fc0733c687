"""Rows shared between ranks in sparse layers, on real gloo ranks, end to end."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from compiler import Verdict, optimize_allreduce
from compiler.runtime.counting import count_collectives
from models.step3p5 import Step3p5Config, Step3p5ForCausalLM
from tests.compiler.optimize.models import HIDDEN, Stack

TOKENS = (0, 1, 2, 3, 4, 5, 7, 8, 64)


def difference(model: Any, optimized: Any, *args: Any) -> float:
    with torch.no_grad():
        want, got = model(*args), optimized(*args)
    return float((want - got).abs().max()) if want.numel() else 0.0


def stack(group: dist.ProcessGroup) -> dict[str, Any]:
    model = Stack(group)
    optimized = optimize_allreduce(
        model, (torch.ones(5, HIDDEN),), group=group, policy="boundary", layers=["dense", "sparse"]
    )
    found: dict[str, Any] = {"verdict": optimized.report.verdict}
    found["counts"] = dict(optimized.report.after.counts)
    for tokens in TOKENS:
        x = torch.linspace(-1, 1, tokens * HIDDEN).reshape(tokens, HIDDEN)
        found[f"{tokens} tokens"] = difference(model, optimized, x)
    with count_collectives() as ran:
        optimized(torch.ones(6, HIDDEN))
    found["ran"] = dict(ran.collectives)
    return found


def test_a_sparse_layer_works_on_shares_of_any_number_of_rows(gloo_pool: Any) -> None:
    expected = {"all_reduce": 1, "reduce_scatter": 1, "all_gather": 1}
    for found in gloo_pool(4).run(stack):
        assert found["verdict"] is Verdict.EQUIVALENT
        assert found["counts"] == found["ran"] == expected
        assert max(found[f"{tokens} tokens"] for tokens in TOKENS) < 1e-5


def step3p5(group: dist.ProcessGroup, experts: str) -> dict[str, Any]:
    config = Step3p5Config.small(2, moe_layers_enum="1")  # one layer of each kind
    model = Step3p5ForCausalLM(config, group=group, experts=experts, dtype=torch.float32).eval()
    optimized = optimize_allreduce(model, group=group, policy="boundary")
    found: dict[str, Any] = {}
    for name, batch, tokens in (("prefill", 1, 9), ("more", 1, 16), ("decode", 5, 1)):
        ids = (torch.arange(batch * tokens) * 7 % config.vocab_size).reshape(batch, tokens)
        positions = torch.arange(tokens).expand(batch, tokens).contiguous()
        with torch.no_grad():
            logits = [m(ids, positions, model.make_cache(batch, 32)) for m in (model, optimized)]
        scale = logits[0].square().mean().sqrt()
        found[name] = float((logits[0] - logits[1]).abs().max() / scale)
        found[f"{name} after"] = dict(optimized.report.after.counts)
        found[f"{name} verdict"] = optimized.report.verdict
    return found


@pytest.mark.parametrize("experts", [pytest.param("tp", marks=pytest.mark.campaign), "ep"])
def test_sparse_segments_of_a_model(gloo_pool: Any, experts: str) -> None:
    for found in gloo_pool(2).run(step3p5, experts):
        for name in ("prefill", "more", "decode"):
            assert found[name] < 5e-5, name
            assert found[f"{name} verdict"] is Verdict.EQUIVALENT
            counts = found[f"{name} after"]
            assert counts["reduce_scatter"] == counts["all_gather"] - 1 > 0, "one for the head"
