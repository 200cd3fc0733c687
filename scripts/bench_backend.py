"""What the backend adds to stock torch.compile: time to the first result, and per call.

    torchrun --nproc-per-node 2 -m scripts.bench_backend [--layers 12] [--hidden 64] [--rounds 3]

A decoder that PyTorch shards (``parallelize_module``), under Inductor with empty caches: stock and
with the backend in turns, so that both see the same load. CPU seconds are those of all ranks, with
the compilers that they start.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch._inductor import config
from torch._inductor.utils import fresh_cache
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import compiler

VOCABULARY, HEADS = 128, 8
BACKENDS = ("inductor", "commplan")


class Layer(nn.Module):
    """Attention and MLP beside each other, as in GPT-J, Falcon and Cohere."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(hidden)
        self.q, self.k, self.v, self.o = (nn.Linear(hidden, hidden, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(hidden, 2 * hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(2 * hidden, hidden, bias=False)
        self.width = hidden // HEADS

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Hidden states [batch, tokens, hidden] after the layer."""
        batch, tokens, _ = x.shape
        y = self.norm(x)
        q, k, v = (
            f(y).view(batch, tokens, -1, self.width).transpose(1, 2)
            for f in (self.q, self.k, self.v)
        )
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        attended = self.o(seen.transpose(1, 2).reshape(batch, tokens, -1))
        return x + attended + self.down(nn.functional.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    """Token ids [batch, tokens] to logits [batch, tokens, VOCABULARY]."""

    def __init__(self, layers: int, hidden: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, hidden)
        self.layers = nn.ModuleList(Layer(hidden) for _ in range(layers))
        self.norm = nn.RMSNorm(hidden)
        self.head = nn.Linear(hidden, VOCABULARY, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits of the tokens."""
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def sharded(model: Decoder, mesh: DeviceMesh) -> Decoder:
    """``model``, column and row parallel, its embedding and head too."""
    plan = {name: ColwiseParallel() for name in ("q", "k", "v", "gate", "up")}
    plan |= {name: RowwiseParallel() for name in ("o", "down")}
    for layer in model.layers:
        parallelize_module(layer, mesh, plan)
    ends = {
        "embedding": RowwiseParallel(input_layouts=Replicate()),
        "head": ColwiseParallel(output_layouts=Replicate()),
    }
    parallelize_module(model, mesh, ends)
    return model


def cpu_seconds() -> float:
    """Of this process and of those it started and waited for."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)


def collectives(run: Callable[[], Any]) -> dict[str, int]:
    """What gloo did in a call."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    names = (
        event.name.removeprefix("gloo:") for event in profile.events() if "gloo:" in event.name
    )
    return dict(Counter(names))


def measured(model: nn.Module, ids: torch.Tensor, backend: str, calls: int) -> dict[str, Any]:
    """One start with empty caches."""
    torch._dynamo.reset()
    compiler.reset_reports()
    with fresh_cache(), config.patch(compile_threads=1):  # in this process, to be counted
        run = torch.compile(model, backend=backend)
        dist.barrier()
        wall, cpu = time.perf_counter(), cpu_seconds()
        logits = run(ids)
        wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
        counted = collectives(lambda: run(ids))
        dist.barrier()
        started = time.process_time()
        for _ in range(calls):
            run(ids)
        per_call = (time.process_time() - started) / calls
    seconds = dict(compiler.reports()[0].model.seconds) if compiler.reports() else {}
    return {
        "wall_s": wall, "cpu_s": cpu, "call_cpu_us": per_call * 1e6, "collectives": counted,
        "logits": logits, "stages": seconds,
    }  # fmt: skip


def main() -> None:
    """Print one JSON object; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    for option, default in (("layers", 12), ("hidden", 64), ("rounds", 3), ("calls", 100)):
        parser.add_argument(f"--{option}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("tp",))
    ids = torch.arange(32).reshape(2, 16)
    model = Decoder(options.layers, options.hidden).eval()
    with torch.no_grad():
        expected = model(ids)
        sharded(model, mesh)
        runs: dict[str, list[dict[str, Any]]] = {backend: [] for backend in BACKENDS}
        for backend in BACKENDS:  # imports and first uses
            measured(sharded(Decoder(1, options.hidden), mesh), ids, backend, 1)
        for _ in range(options.rounds):
            for backend in BACKENDS:
                runs[backend].append(measured(model, ids, backend, options.calls))
    summary: dict[str, Any] = {"ranks": dist.get_world_size(), "layers": options.layers}
    for backend, rounds in runs.items():
        differences = [float((r["logits"] - expected).abs().max()) for r in rounds]
        summary[backend] = {
            **{
                name: statistics.median(r[name] for r in rounds)
                for name in ("wall_s", "cpu_s", "call_cpu_us")
            },
            "collectives": rounds[-1]["collectives"],
            "largest_difference": max(differences),
            "stages_s": {k: round(v, 3) for k, v in rounds[-1]["stages"].items()},
        }
    for name in ("wall_s", "cpu_s", "call_cpu_us"):
        stock, ours = (summary[backend][name] for backend in BACKENDS)
        summary[f"{name} added"] = f"{100 * (ours / stock - 1):.1f} %"
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, summary)
    if dist.get_rank() == 0:
        print(json.dumps(everyone[0], indent=1))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
