"""The op that graphs call beside every kernel that it chooses from, and what it costs the host."""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console

from bench.measure import machine_data
from compiler.cost import Machine, tables
from compiler.cost.fused_kernels import FusedKernel
from compiler.cost.machine_files import parse_machine
from compiler.cost.tables import BYTES_PER_US, Fused, LibraryClass
from compiler.runtime.kernels.launch import FLAT_WIDTH, Launch, choose
from scripts.kernel_checks import EPS, OPS, ranks_for
from scripts.kernel_timing import (
    Block,
    Body,
    add_norm,
    copy_bandwidth_tb_s,
    graph_time_us,
    print_rows,
    serve,
)

ROWS = tuple(1 << i for i in range(15))
HIDDEN, OTHER_HIDDEN = 4096, (2048, 8192)
"""The width that the tables are of, and others that they choose for."""
ITEM_BYTES = torch.bfloat16.itemsize
Times = dict[str, float]


def kernels_of(block: Block) -> dict[str, Body]:
    """What the op chooses from, and the all_reduce with a norm behind it."""
    return {
        FusedKernel.ONE_SHOT: block.one_shot_norm(),
        FusedKernel.TWO_SHOT: block.two_shot_whole_norm(),
        "unfused": block.unfused(),
    }


def choice(console: Console, world_size: int) -> dict[str, list[Times]]:
    """Times of the kernels and of the op, by hidden; the op chooses by tables of HIDDEN alone."""
    widths = (HIDDEN, *OTHER_HIDDEN)
    jobs = [(world_size, hidden, kernel) for hidden in widths for kernel in WARMED]
    with multiprocessing.get_context("spawn").Pool(len(jobs)) as pool:
        pool.starmap(compile_all, jobs)
    machine, results = None, dict[str, list[Times]]()
    for hidden in widths:
        ranks = ranks_for(world_size, max(ROWS) * hidden * ITEM_BYTES, alone=True)
        table = list[Times]()
        for rows in ROWS:
            block = Block(ranks, rows, hidden, torch.bfloat16)
            times = {name: graph_time_us(ranks, body, repeats=7)
                     for name, body in kernels_of(block).items()}  # fmt: skip
            table.append({"rows": rows, **times})
        machine = machine or machine_of(world_size, table)
        serve(ranks, machine)
        for times in table:
            block = Block(ranks, int(times["rows"]), hidden, torch.bfloat16)
            op = graph_time_us(ranks, block.op(), repeats=7)
            best = min(times[name] for name in kernels_of(block))
            times.update({"op": op, "best / op": best / op})
        title = f"{world_size} ranks, hidden {hidden}, bf16: microseconds in CUDA graphs"
        print_rows(console, title, table)
        results[str(hidden)] = table
        del ranks, block
        torch.cuda.empty_cache()
    return results


WARMED = {"one_shot_norm": "one_shot_norm", "two_shot_whole_norm": "two_shot_whole_norm",
          "two_shot": "two_shot_staged"}  # fmt: skip
"""Kernel by its name in the table of launches -> the body of ``Block`` that starts it."""


def compile_all(world_size: int, hidden: int, kernel: str) -> None:
    """Compiles one kernel for every number of warps that ``choice`` runs it with."""
    warnings.simplefilter("ignore")
    ranks = ranks_for(world_size, world_size * hidden * ITEM_BYTES, alone=True)
    block, peers = Block(ranks, world_size, hidden, torch.bfloat16), ranks.workspaces[0].peers
    width = FLAT_WIDTH if kernel == "two_shot" else hidden
    counts = [rows * hidden // width for rows in ROWS]
    if kernel != "one_shot_norm":
        counts = [-(-count // world_size) for count in counts]
    for warps in {choose(kernel, n, width * ITEM_BYTES, peers).warps for n in counts}:
        ranks.warm(getattr(block, WARMED[kernel])(Launch(1, warps)))


def machine_of(world_size: int, table: list[Times]) -> Machine:
    """A machine whose tables are the times just measured: ranks that share one GPU."""
    source = f"ranks on streams of one {torch.cuda.get_device_name()}"
    rows = [
        {
            "kind": str(Fused.ALL_REDUCE_ADD_NORM), "ranks": world_size, "library": str(kernel),
            "class": str(LibraryClass.CUSTOM), "launches": [str(tables.Launch.GRAPH)],
            "source": source,
            "rows": [[int(t["rows"]) * HIDDEN * ITEM_BYTES, t[kernel]] for t in table],
        }
        for kernel in (FusedKernel.ONE_SHOT, FusedKernel.TWO_SHOT)
    ]  # fmt: skip
    memory = round(copy_bandwidth_tb_s() * 1e6)
    hardware = {"memory": {"value": memory, "unit": BYTES_PER_US, "source": source}}
    return parse_machine(machine_data("streams", source, world_size, hardware, rows), Path())


def call_times_us(calls: Mapping[str, Callable[[], object]], *, rounds: int = 300) -> Times:
    """Median microseconds of the host in eager calls that wait for nothing, taken in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - start) * 1e6)
            torch.cuda.synchronize()
    return {name: statistics.median(taken) for name, taken in times.items()}


def host(console: Console) -> Times:
    """What one eager call takes of the host, on a group of one rank: ours, NCCL's and ATen's."""
    ranks = ranks_for(1, 8 * HIDDEN * ITEM_BYTES)
    serve(ranks, None)
    workspace = ranks.workspaces[0]
    block = Block(ranks, 8, HIDDEN, torch.bfloat16)
    x, residual, weight = block.x[0], block.residual[0], block.weight
    norm = (residual, weight, EPS, 0.0, *workspace.arguments)
    op, one_shot, two_shot = block.op(), block.one_shot_norm(), block.two_shot_whole_norm()
    kernel = OPS.one_shot_all_reduce_add_rms_norm
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{folder}/store"
        dist.init_process_group("nccl", init_method=store, rank=0, world_size=1)
        calls: dict[str, Callable[[], object]] = {
            "the op that graphs call": lambda: op(0),
            "the op of its kernel": lambda: kernel(x, *norm),
            "launch of one-shot": lambda: one_shot(0),
            "launch of two-shot, whole": lambda: two_shot(0),
            "workspace.on_current_stream": workspace.on_current_stream,
            "two torch.empty_like": lambda: (torch.empty_like(x), torch.empty_like(x)),
            "NCCL all_reduce": lambda: dist.all_reduce(x),
            "ATen add, then rms_norm": lambda: add_norm(x, residual, weight),
        }
        times = call_times_us(calls)
        dist.destroy_process_group()
    peer = times["NCCL all_reduce"] + times["ATen add, then rms_norm"]
    times["NCCL and ATen / op"] = peer / times["the op that graphs call"]
    console.print("host microseconds of one eager call:", times)
    return times
