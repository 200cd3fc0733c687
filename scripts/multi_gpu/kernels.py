"""Fused kernels against the library's all_reduce, then a compiled addition and RMSNorm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from compiler.capture.digest import digests
from compiler.cost import Launch
from compiler.runtime.kernels.workspace import Workspace, aligned
from scripts.kernel_checks import EPS, OPS, RUNS, Operands, deviation
from scripts.kernel_timing import add_norm
from scripts.multi_gpu.links import HIDDEN, fused_all_reduce, fused_shares, time_us
from scripts.multi_gpu.ranks import Ranks, WrongResultError

Rows = list[dict[str, Any]]


@dataclass
class OneOfMany:
    """This rank's workspace in the place of every rank's: operands of all are made from seeds."""

    workspaces: list[Workspace]


def measured_kernels(ranks: Ranks, sizes: Sequence[int]) -> dict[str, Any]:
    """Errors and times over numbers of rows, bf16, hidden 4,096.

    Raises:
        WrongResultError: a result is further from the exact one than one rounding, or ranks differ.
    """
    if not ranks.cuda:
        ranks.skip("kernels: they run on GPUs only, and the ranks run on CPUs")
        return {"rows": [], "skipped": ranks.skipped[-1]}
    slot_bytes = aligned(max(sizes) * HIDDEN * torch.bfloat16.itemsize)
    workspace = Workspace.rendezvous(
        ranks.group, slot_bytes=slot_bytes, placed_bytes=2 * (slot_bytes + 256)
    )
    compiled = torch.compile(add_norm, dynamic=True)
    launch = Launch.GRAPH if ranks.graphs else Launch.EAGER
    rows = Rows()
    for count in sizes:
        worst = checked(ranks, workspace, count)
        rows.append({"rows": count, "launch": str(launch), "deviation": worst})
        rows[-1] |= times_us(ranks, workspace, count, compiled, launch)
        ranks.tell(f"{count} rows: {rows[-1]}")
    return {"rows": rows}


def checked(ranks: Ranks, workspace: Workspace, rows: int) -> float:
    """Largest error of all kernels on all ranks, in units of what is allowed."""
    many = OneOfMany([workspace] * ranks.size)
    o = Operands(many, rows, HIDDEN, torch.bfloat16, float(rows % 2), seed=rows)
    worst = 0.0
    for name, run in RUNS.items():
        workspace.buffer[workspace.signal_bytes(ranks.size) :].fill_(255)  # NaN in every dtype
        torch.cuda.synchronize()
        dist.barrier()  # nobody reads a slot before all are filled
        results = run(o, ranks.rank)
        here = ranks.largest(deviation(o, ranks.rank, results))
        whole = {key: x for key, x in results.items() if not key.endswith(" shard")}
        all_digests = ranks.gathered(digests(whole))
        others = [rank for rank, one in enumerate(all_digests) if one != all_digests[0]]
        if here > 1 or others:
            raise WrongResultError(
                f"the kernel {name!r} is wrong",
                where=f"{rows} rows of {HIDDEN}, bf16, {ranks.size} ranks",
                found=f"{here:.3g} times the allowed error; ranks that differ from rank 0: "
                f"{others or 'none'}",
            )
        worst = max(worst, here)
    return worst


def times_us(
    ranks: Ranks, workspace: Workspace, rows: int, compiled: Callable[..., Any], launch: Launch
) -> dict[str, float]:
    """What the fused ops, their kernels and the unfused sequence take, and the ratios."""
    x, weight = (torch.zeros(n, HIDDEN, dtype=torch.bfloat16, device="cuda") for n in (rows, 1))
    residual, shard = torch.zeros_like(x), x.new_zeros(-(-rows // ranks.size), HIDDEN)
    placed = Operands(OneOfMany([workspace] * ranks.size), rows, HIDDEN, torch.bfloat16, 0.0)
    x_in, y_out = placed.symmetric(ranks.rank, 0), placed.symmetric(ranks.rank, 1)
    norm = (weight[0], EPS, 1.0)
    arguments = workspace.arguments

    def unfused() -> None:
        dist.all_reduce(x)
        compiled(x, residual, weight[0])

    calls: dict[str, Callable[[], object]] = {
        "one-shot": lambda: OPS.one_shot_all_reduce_add_rms_norm(x, residual, *norm, *arguments),
        "two-shot": lambda: OPS.two_shot_all_reduce_add_rms_norm(x, shard, *norm, *arguments),
        "two-shot, symmetric": lambda: OPS.two_shot_all_reduce_add_rms_norm_(
            x_in, shard, weight[0], y_out, EPS, 1.0, *arguments
        ),
        "op": fused_all_reduce(rows, ranks),
        "op, shares": fused_shares(rows, ranks),
        "all_reduce": lambda: dist.all_reduce(x),
        "add + norm": lambda: compiled(x, residual, weight[0]),
        "unfused": unfused,
    }
    times = {name: time_us(call, launch, ranks) for name, call in calls.items()}
    ratios = {f"ratio, {op}": times["unfused"] / times[op] for op in ("op", "op, shares")}
    return {**times, **ratios}
