"""One rank of Step-3.5 in several forms that share their weights: written, merged by hand, ours."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from compiler.capture import Capture, capture
from compiler.ir.collectives import Kind
from compiler.optimize import optimize_captured
from compiler.plan.planner_options import PlannerOptions
from compiler.plan.token_ranges import TokenRange, TokenTable
from compiler.runtime.group_exchange import exchange_over, ranks_of
from compiler.runtime.guarded_graph import GuardedGraph
from compiler.runtime.host_memory import through_host
from compiler.runtime.lowering import lower
from compiler.runtime.module import OptimizedModule
from models.step3p5 import Step3p5Config, Step3p5ForCausalLM
from models.step3p5.attention import KVCache, Step
from models.step3p5.entry import real_config
from models.step3p5.model import DecoderLayer
from models.step3p5.parallel import RankGroup

Call = tuple[tuple[Any, ...], dict[str, Any]]
Traffic = list[tuple[Kind, int]]


class HostGathering(RankGroup):
    """Ranks that gather by way of host memory where their group cannot gather CUDA tensors."""

    def all_gather_columns(self, shard: Tensor) -> Tensor:
        """As in the base class, which is what a trace shows."""
        group = self.group
        if torch.compiler.is_compiling() or group is None:
            return super().all_gather_columns(shard)
        if not through_host(shard, str(group.group_name)):
            return super().all_gather_columns(shard)
        return super().all_gather_columns(shard.cpu()).to(shard.device)


class Unreduced(RankGroup):
    """Ranks whose partial sums somebody else adds up."""

    def all_reduce(self, partial: Tensor) -> Tensor:
        """``partial`` as it is."""
        return partial


class MergedLayer(DecoderLayer):
    """What an engineer would write: routed and shared experts share one all_reduce."""

    ranks: RankGroup

    def merge(self, ranks: RankGroup) -> None:
        """Takes the sums of the sparse layer's two branches into ``forward``."""
        self.ranks = ranks
        if self.is_sparse:
            silent = Unreduced(ranks.group, ranks.rank, ranks.size)
            self.moe.ranks = self.share_expert.down_proj.ranks = silent

    def forward(self, x: Tensor, step: Step, cache: KVCache | None) -> Tensor:
        """As in the base class."""
        if not self.is_sparse:
            return super().forward(x, step, cache)
        x = x + self.self_attn(self.input_layernorm(x), step, cache)
        normed = self.post_attention_layernorm(x)
        return x + self.ranks.all_reduce(self.moe(normed) + self.share_expert(normed))


def config_of_size(layers: int | None, *, small: bool) -> Step3p5Config:
    """The real model or the small one, cut to so many layers; None: all that it has."""
    if not small:
        return real_config(layers)
    return Step3p5Config.small() if layers is None else Step3p5Config.small(layers)


def random_model(
    config: Step3p5Config, device: str, dtype: torch.dtype, experts: str = "tp"
) -> Step3p5ForCausalLM:
    """This rank's part, weights normal with deviation 0.02, for times only.

    Ranks that hold the same block of a parameter hold the same values.
    """
    model = Step3p5ForCausalLM(
        config, group=dist.group.WORLD, experts=experts, device=device, dtype=dtype, seed=None
    )
    gather_anywhere(model)
    generator = torch.Generator(device)
    for number, (name, parameter) in enumerate(model.named_parameters()):
        shard = model.shard(name)
        block = 0 if shard is None else shard.index
        generator.manual_seed(number * model.ranks.size + block)
        parameter.normal_(std=0.02, generator=generator)
    return model


def gather_anywhere(model: Step3p5ForCausalLM) -> None:
    """Lets ranks that share a GPU gather logits."""
    model.ranks = HostGathering(model.ranks.group, model.ranks.rank, model.ranks.size)


def over_same_weights(model: Step3p5ForCausalLM) -> Step3p5ForCausalLM:
    """Another model that holds the parameters of ``model``."""
    other = Step3p5ForCausalLM(
        model.config,
        group=dist.group.WORLD,
        experts=model.experts,
        device="meta",
        dtype=model.lm_head.weight.dtype,
    )
    gather_anywhere(other)
    other.load_state_dict(model.state_dict(), assign=True)
    other.requires_grad_(False)
    return other


def merged_by_hand(model: Step3p5ForCausalLM) -> Step3p5ForCausalLM:
    """A model over the same weights with one all_reduce for the experts of a layer."""
    other = over_same_weights(model)
    for layer in other.model.layers:
        layer.__class__ = MergedLayer
        layer.merge(other.ranks)
    return other


def prefill_call(tokens: int, vocab: int, device: str, kept: int = 1) -> Call:
    """One prompt; logits of its last ``kept`` tokens."""
    ids = torch.randint(vocab, (1, tokens), device=device)
    return (ids, torch.arange(tokens, device=device)[None]), {"logits_to_keep": kept}


def decode_call(model: Any, batch: int, context: int, device: str) -> Call:
    """One new token for each of ``batch`` sequences, at the end of their context."""
    ids = torch.randint(model.config.vocab_size, (batch, 1), device=device)
    positions = torch.full_like(ids, context - 1)
    cache = model.make_cache(batch, context)
    for tensor in torch.utils._pytree.tree_leaves(cache):  # else no CUDA graphs of a compiled step
        torch._dynamo.mark_static_address(tensor)
    return (ids, positions, cache), {}


@dataclass
class Captured:
    """A model captured for one kind of call, and the seconds that capture took."""

    capture: Capture
    seconds: float


def captured(model: Step3p5ForCausalLM, call: Call) -> Captured:
    """Captures ``model``; sizes over one stay symbolic."""
    start = time.perf_counter()
    capture_ = capture(model, *call, exchange=exchange_over(ranks_of(None)))
    return Captured(capture_, time.perf_counter() - start)


def optimized(
    model: Step3p5ForCausalLM, captured_: Capture, policy: str
) -> tuple[OptimizedModule, Callable[[int], tuple[Traffic, Traffic]], str]:
    """The optimized model, its collectives before and after by tokens, and the verdict."""
    result = optimize_captured(captured_, PlannerOptions(policy), config=model.config)
    ready = lower(result.spmd, captured_.groups, mutations=captured_.mutations)
    report = replace(result, remarks=(*result.remarks, *ready.remarks))
    forms = TokenTable(1, (TokenRange(1, 1, ready),))
    prepared = GuardedGraph(forms, None, captured_, report, None)

    def traffic(tokens: int) -> tuple[Traffic, Traffic]:
        from compiler.analysis.statistics import statistics

        graphs = (captured_.graph.graph, result.spmd.graph)
        before, after = (statistics(g, tokens).collectives for g in graphs)
        return [(c.kind, c.payload_bytes) for c in before], [
            (c.kind, c.payload_bytes) for c in after
        ]

    return OptimizedModule(model, lambda *_: prepared), traffic, str(report.verdict)
