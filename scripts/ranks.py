"""Runs a small Step-3.5 on gloo ranks before and after optimization, for the demo."""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from compiler import optimize_allreduce
from compiler.runtime.counting import count_collectives
from models.step3p5 import Step3p5Config, Step3p5ForCausalLM

TOKENS, BATCH, MAX_TOKENS = 48, 4, 64


@dataclass(frozen=True)
class Run:
    """One kind of call, measured.

    Attributes:
        experts: "tp" or "ep".
        call: "prefill" or "decode".
        all_reduces_before: all_reduces that ran in one call of the model as written.
        all_reduces_after: in one call of the optimized model.
        time_ratio: median wall time of the optimized call over that of the original.
        difference: largest difference of logits between the two, over their root mean square.
        difference_to_dense: likewise against the unsharded model in one process.
    """

    experts: str
    call: str
    all_reduces_before: int
    all_reduces_after: int
    time_ratio: float
    difference: float
    difference_to_dense: float


def run_small(experts: str, *, ranks: int, rounds: int) -> list[Run]:
    """Measures prefill and decode on ``ranks`` processes."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "runs.pt"
        mp.spawn(_rank, (ranks, experts, rounds, f"{folder}/store", results), nprocs=ranks)
        runs: list[Run] = torch.load(results, weights_only=False)
        return runs


def _rank(rank: int, ranks: int, experts: str, rounds: int, store: str, results: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    config = Step3p5Config.small()
    model = Step3p5ForCausalLM(
        config, group=dist.group.WORLD, experts=experts, dtype=torch.float32
    ).eval()
    dense = Step3p5ForCausalLM(config, dtype=torch.float32).eval()
    optimized = optimize_allreduce(model)
    runs = [
        _measure(experts, name, model, optimized, dense, rounds) for name in ("prefill", "decode")
    ]
    if rank == 0:
        torch.save(runs, results)
    dist.barrier()
    dist.destroy_process_group()


def _inputs(model: Step3p5ForCausalLM, call: str) -> tuple[Any, ...]:
    """Token ids, positions and a cache; for decode, the cache holds earlier tokens."""
    batch, tokens = (1, TOKENS) if call == "prefill" else (BATCH, 1)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, model.config.vocab_size, (batch, TOKENS), generator=generator)
    positions = torch.arange(TOKENS).expand(batch, TOKENS)
    cache = model.make_cache(batch, MAX_TOKENS)
    if call == "decode":
        with torch.no_grad():
            model(ids, positions, cache)
        ids, positions = ids[:, -tokens:], positions[:, -tokens:] + 1
    return ids, positions, cache


def _measure(experts: str, call: str, model: Any, optimized: Any, dense: Any, rounds: int) -> Run:
    sides: dict[str, Any] = {"before": model, "after": optimized, "dense": dense}
    logits, counted = {}, {}
    inputs = {name: _inputs(dense if name == "dense" else model, call) for name in sides}
    with torch.no_grad():
        for name, side in sides.items():
            side(*inputs[name])  # captures, on the first call of the optimized model
            with count_collectives() as counts:
                logits[name] = side(*inputs[name])
            counted[name] = counts.collectives["all_reduce"]
        seconds: dict[str, list[float]] = {"before": [], "after": []}
        for _ in range(rounds):
            for name in seconds:
                dist.barrier()
                start = time.perf_counter()
                sides[name](*inputs[name])
                seconds[name].append(time.perf_counter() - start)
    rms = float(logits["dense"].pow(2).mean().sqrt())

    def difference(left: str, right: str) -> float:
        return float((logits[left] - logits[right]).abs().max()) / rms

    return Run(
        experts, call, counted["before"], counted["after"],
        statistics.median(seconds["after"]) / statistics.median(seconds["before"]),
        difference("before", "after"), difference("after", "dense"),
    )  # fmt: skip
