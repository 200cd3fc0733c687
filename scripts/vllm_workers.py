"""What the workers of ``scripts/test_vllm`` do besides serving: weights, counting, hidden states.

vLLM imports this module in each worker, before it builds the model, as ``worker_extension_cls``.
"""

from __future__ import annotations

import zlib
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from vllm.distributed.parallel_state import GroupCoordinator
from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader

from compiler import reports
from compiler.engines.vllm.weights import placements
from compiler.engines.vllm.world import as_on_cuda
from compiler.ir.placement import Replicate

COUNTED = ("all_reduce", "reduce_scatter", "all_gather")
calls: Counter[str] = Counter()


def fill(model: nn.Module, seed: int) -> None:
    """Draw all weights: alike on all ranks, but of those that layers say are sharded."""
    declared = placements(model)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not tensor.is_floating_point() or "cos_sin" in name:
            continue
        is_alike = isinstance(declared.get(name, Replicate()), Replicate)
        rank = 0 if is_alike else 1 + dist.get_rank()
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + 7919 * rank + seed)
        drawn = torch.randn(tensor.shape, generator=generator)
        fan_in = tensor.shape[-1] if tensor.dim() > 1 else 64
        tensor.data.copy_(drawn * (1.5 / fan_in**0.5))


def load_weights(self: Any, model: nn.Module, model_config: Any) -> None:
    """Take the place of the loader of dummy weights, which are near zero."""
    fill(model, model_config.seed)


def counted(kind: str) -> Any:
    """Return the method of a group that communicates, counting its calls."""
    method = getattr(GroupCoordinator, f"_{kind}_out_place")

    def call(self: Any, *args: Any) -> Any:
        calls[kind] += self.world_size > 1
        return method(self, *args)

    return call


as_on_cuda(ExitStack())  # never closed: as long as the worker lives
DummyModelLoader.load_weights = load_weights
for one in COUNTED:
    setattr(GroupCoordinator, f"_{one}_out_place", counted(one))


class Observer:
    """Methods of a worker that ``LLM.collective_rpc`` calls by name."""

    model_runner: Any

    def observe(self) -> None:
        """Note hidden states and collectives from now on."""
        self.states: list[torch.Tensor] = []
        self.counts: list[dict[str, int]] = []
        model = self.model_runner.model

        def before(*_: Any) -> None:
            calls.clear()

        def after(_: nn.Module, __: Any, result: torch.Tensor) -> None:
            self.states.append(result.detach().float().clone())
            self.counts.append(dict(calls))

        model.register_forward_pre_hook(before)
        model.register_forward_hook(after)

    def save(self, folder: str) -> None:
        """Save the hidden states of every call of the model, and its collectives."""
        file = Path(folder, f"rank{dist.get_rank()}.pt")
        torch.save({"states": self.states, "counts": self.counts}, file)

    def planned(self) -> list[dict[str, Any]]:
        """Return what became of the graphs that commplan was given."""
        return [
            {
                "outcome": str(report.outcome),
                "reason": report.reason,
                "verdict": str(report.verdict),
                "before": dict(report.before.counts),
                "after": dict(report.after.counts),
                "inputs": dict(report.inputs),
                "text": str(report),
            }
            for report in reports()
        ]
