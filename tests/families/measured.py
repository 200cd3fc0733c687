"""Optimize a sharded decoder, and run all its ranks in float64 before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from compiler.capture import Capture, capture_ranks
from compiler.capture.fake_ranks import fake_process_group
from compiler.check.simulate import simulate
from compiler.ir.graph import SpmdGraph
from compiler.ir.placement import Replicate
from compiler.optimize import ModelReport, OptimizationResult, optimize_captured
from compiler.plan.planner_options import PlannerOptions
from tests.families.families import Family
from tests.families.sharding import WORLD_SIZE, Decoder, sharded

PREFILL, DECODE = (1, 8), (4, 1)
"""Sequences and tokens of each."""

Held = Mapping[str, torch.Tensor]
"""Key of a tensor of the model -> what one rank holds of it."""


@dataclass(frozen=True)
class Measured:
    """A family's graph before and after.

    Attributes:
        captured: the graph as its authors wrote it.
        result: what became of it.
        report: the same, by layer.
        moved: largest difference between the two, all ranks in float64.
        sharded: largest difference of the first to the unsharded model, whose norms and softmax
            compute in single precision. Both are relative to the logits' root mean square.
    """

    captured: Capture
    result: OptimizationResult
    report: ModelReport
    moved: float
    sharded: float


def captured(
    family: Family,
    ids: torch.Tensor,
    *,
    dtype: torch.dtype = torch.bfloat16,
    experts: str = "batched_mm",
) -> tuple[Capture, list[Held]]:
    """The graph of all ranks, and what each of them holds.

    Args:
        family: what to build.
        ids: token ids.
        dtype: of the parameters.
        experts: transformers' implementation of routed experts.
    """
    shards: list[Held] = []
    whole: set[str] = set()
    for rank in range(WORLD_SIZE):
        with fake_process_group(rank, WORLD_SIZE):
            tensors = _tensors(sharded(family, dtype, experts))
        whole = {key for key, held in tensors.items() if not isinstance(held, DTensor)}
        shards.append({k: x.to_local() if k not in whole else x for k, x in tensors.items()})
    for key in whole:
        assert all(torch.equal(held[key], shards[0][key]) for held in shards), key

    factory = partial(sharded, family, dtype, experts)
    replicated = dict.fromkeys(whole, Replicate())
    capture = capture_ranks(
        factory, lambda: ((ids,), {}), WORLD_SIZE, inputs=replicated, capture="record"
    )
    return capture, shards


def _tensors(model: nn.Module) -> dict[str, Any]:
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers())
    return {key: held.detach() for key, held in named}


def measured(family: Family, sizes: tuple[int, int] = PREFILL, **options: Any) -> Measured:
    """Capture, optimize, check, and run before and after; options as of ``captured``."""
    ids = torch.randint(3, 64, sizes, generator=torch.Generator().manual_seed(1))
    found, shards = captured(family, ids, **options)
    result, report = optimize_captured(found, PlannerOptions())
    before, after = (logits(found, g, shards, ids) for g in (found.graph, result.spmd))
    whole = Decoder(family.full(torch.bfloat16, "batched_mm").double())
    with torch.no_grad():
        wanted = whole(ids)
    unit = wanted.square().mean().sqrt()
    return Measured(
        found,
        result,
        report,
        moved=max(float((a - b).abs().max() / unit) for a, b in zip(after, before, strict=True)),
        sharded=max(float((x - wanted).abs().max() / unit) for x in before),
    )


def logits(
    found: Capture, graph: SpmdGraph, shards: list[Held], ids: torch.Tensor
) -> list[torch.Tensor]:
    """What every rank computes, in float64."""
    inputs = {name: [held[key] for held in shards] for name, key in found.state.items()}
    inputs |= {name: [x] * WORLD_SIZE for name, x in found.constants.items()}
    inputs |= {name: [ids] * WORLD_SIZE for name in found.arguments if isinstance(name, str)}
    (output,) = found.results
    assert isinstance(output, int), "the logits are computed"
    return simulate(graph, inputs, exact=True)[output]
