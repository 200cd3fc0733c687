"""Times collectives, memory, matrix products and launches of the machine this process runs on.

All ranks run the same calls in lockstep: what a group of ranks takes is what its slowest takes.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from bench.fit import MIN_POINTS
from bench.measurements import refitted
from bench.ranks import device_of_rank, joined
from compiler.cost.fused_kernels import FusedKernel
from compiler.cost.tables import (
    BYTES_PER_US,
    FLOP_PER_US,
    NS,
    Fused,
    Launch,
    LibraryClass,
    MachineError,
)
from compiler.ir.collectives import Kind
from compiler.runtime.kernels import ops
from compiler.runtime.kernels.select import workspace_for

KINDS = (Kind.ALL_REDUCE, Kind.REDUCE_SCATTER, Kind.ALL_GATHER, Kind.ALL_TO_ALL)
TARGET_S = 0.01
"""How long one repetition should take; short calls are timed in runs."""
MAX_RUN, REPEATS, GRAPH_CALLS, LAUNCHES = 200, 5, 10, 200
HIDDEN = 4096
"""Width of the rows that fused kernels are measured on, bfloat16."""
ROW_BYTES = HIDDEN * torch.bfloat16.itemsize
WHOLE, SHARED = Fused
FUSED = (
    (FusedKernel.ONE_SHOT, WHOLE, ops.one_shot_all_reduce_add_rms_norm),
    (FusedKernel.TWO_SHOT, WHOLE, ops.two_shot_all_reduce_add_rms_norm_whole),
    (FusedKernel.TWO_SHOT, SHARED, ops.two_shot_all_reduce_add_rms_norm),
)
"""Kernels that reduce, add and normalize: name, what each does, how it is called."""

Call = Callable[[], object]
Told = Callable[[str], None]


def synchronize(device: torch.device) -> None:
    """Waits for what was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Call, runs: int, device: torch.device) -> float:
    """Wall time of ``runs`` calls one after the other, in seconds."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(runs):
        call()
    synchronize(device)
    return time.perf_counter() - start


def slowest(seconds: float, group: ProcessGroup | None, device: torch.device) -> float:
    """The largest of all ranks' ``seconds``."""
    if group is None:
        return seconds
    slowest_s = torch.tensor([seconds], dtype=torch.float64, device=device)
    dist.all_reduce(slowest_s, dist.ReduceOp.MAX, group=group)
    return float(slowest_s.item())


def time_us(call: Call, device: torch.device, group: ProcessGroup | None = None) -> float:
    """Median time of one call on the slowest rank of the group, after warming up."""
    call()
    once = slowest(seconds_of(call, 1, device), group, device)
    runs = max(1, min(MAX_RUN, int(TARGET_S / max(once, 1e-7))))
    taken = []
    for _ in range(REPEATS):
        if group is not None:
            dist.barrier(group)
        taken.append(slowest(seconds_of(call, runs, device), group, device) / runs)
    return statistics.median(taken) * 1e6


def in_graph(call: Call, calls: int, device: torch.device) -> Call:
    """Replays a CUDA graph of ``calls`` calls."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    return graph.replay


def launched_us(call: Call, launch: Launch, device: torch.device, group: ProcessGroup) -> float:
    """As ``time_us``, of a call launched so."""
    if launch is Launch.EAGER:
        return time_us(call, device, group)
    return time_us(in_graph(call, GRAPH_CALLS, device), device, group) / GRAPH_CALLS


def collective_call(
    kind: Kind, payload_bytes: int, group: ProcessGroup, device: torch.device, dtype: torch.dtype
) -> tuple[int, Call]:
    """A call of this kind, and its payload: ``payload_bytes`` rounded up to whole shards."""
    ranks = group.size()
    rows = -(-payload_bytes // (ranks * dtype.itemsize))
    shard = torch.zeros(rows, dtype=dtype, device=device)
    whole = torch.zeros(rows * ranks, dtype=dtype, device=device)
    other = torch.empty_like(whole)
    calls: dict[Kind, Call] = {
        Kind.ALL_REDUCE: lambda: dist.all_reduce(whole, group=group),
        Kind.REDUCE_SCATTER: lambda: dist.reduce_scatter_tensor(shard, whole, group=group),
        Kind.ALL_GATHER: lambda: dist.all_gather_into_tensor(whole, shard, group=group),
        Kind.ALL_TO_ALL: lambda: dist.all_to_all_single(other, whole, group=group),
    }
    return whole.nbytes, calls[kind]


def measure_collectives(
    group: ProcessGroup,
    device: torch.device,
    sizes: Sequence[int],
    *,
    library: str,
    source: str,
    tell: Told = lambda _: None,
) -> list[dict[str, Any]]:
    """Rows of every kind over ``sizes``, as machine files hold them. Called on all its ranks.

    Args:
        group: the ranks that take part.
        device: where the tensors are.
        sizes: payloads in bytes, ascending.
        library: name and version of what runs the collectives.
        source: where the rows come from.
        tell: told what is being measured.
    """
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    launches = tuple(Launch) if cuda else (Launch.EAGER,)
    rows = []
    for kind in KINDS:
        for launch in launches:
            times: dict[int, float] = {}
            for size in sizes:
                payload_bytes, call = collective_call(kind, size, group, device, dtype)
                tell(f"{kind} over {group.size()} ranks, {launch}, {payload_bytes} bytes")
                times[payload_bytes] = round(launched_us(call, launch, device, group), 3)
            rows.append(
                {
                    "kind": str(kind),
                    "ranks": group.size(),
                    "library": library,
                    "class": str(LibraryClass.NCCL if cuda else LibraryClass.GLOO),
                    "launches": [str(launch)],
                    "source": source,
                    "rows": [list(row) for row in sorted(times.items())],
                }
            )
    return rows


def measure_fused(
    group: ProcessGroup,
    device: torch.device,
    sizes: Sequence[int],
    *,
    source: str,
    tell: Told = lambda _: None,
) -> list[dict[str, Any]]:
    """Rows of this package's kernels that reduce, add and normalize, by which they are chosen.

    None where the group has no workspace, or fewer payloads of whole rows than a curve needs.
    Called on all ranks of the group; arguments as of ``measure_collectives``.
    """
    workspace = workspace_for(group)
    if isinstance(workspace, str):
        tell(f"fused kernels over {group.size()} ranks, none: {workspace}")
        return []
    x = torch.zeros(workspace.slot_bytes // ROW_BYTES, HIDDEN, dtype=torch.bfloat16, device=device)
    payloads = [size for size in sizes if ROW_BYTES * group.size() <= size <= x.nbytes]
    measured = []
    for kernel, kind, op in FUSED if len(payloads) >= MIN_POINTS else ():
        for launch in Launch:
            points = []
            for payload_bytes in payloads:
                tell(f"{kernel} {kind} over {group.size()} ranks, {launch}, {payload_bytes} bytes")
                rows = payload_bytes // ROW_BYTES
                residual = x[: rows if kind is WHOLE else -(-rows // group.size())]
                arguments = (x[:rows], residual, x[0], 1e-5, 1.0, *workspace.arguments)
                taken = launched_us(lambda: op(*arguments), launch, device, group)  # noqa: B023
                points.append([rows * ROW_BYTES, round(taken, 3)])
            measured.append(
                {
                    "kind": str(kind),
                    "ranks": group.size(),
                    "library": str(kernel),
                    "class": str(LibraryClass.CUSTOM),
                    "launches": [str(launch)],
                    "source": source,
                    "rows": points,
                }
            )
    return measured


def measure_hardware(
    device: torch.device, source: str, tell: Told = lambda _: None
) -> dict[str, Any]:
    """Memory bandwidth, matmul rates and launches of this rank's device, as files hold them."""
    cuda = device.type == "cuda"
    tell("memory")
    count = 1 << (27 if cuda else 22)
    memory = _memory_bytes_per_us(count, device)
    matmul = {}
    dtypes = (torch.bfloat16, torch.float16, torch.float32) if cuda else (torch.float32,)
    for dtype in dtypes:
        name, n = str(dtype).removeprefix("torch."), 8192 if cuda else 512
        tell(f"matmul {name}")
        matmul[name] = _quantity(_matmul_flop_per_us(n, dtype, device), FLOP_PER_US, source)
    return {
        "memory": _quantity(memory, BYTES_PER_US, source),
        "matmul": matmul,
        "launch": {
            name: _quantity(us * 1000, NS, source) for name, us in _launches(device, tell).items()
        },
    }


def _memory_bytes_per_us(count: int, device: torch.device) -> float:
    a, b, c = (torch.zeros(count, device=device) for _ in range(3))
    return 3 * a.nbytes / time_us(lambda: torch.add(a, b, out=c), device)


def _matmul_flop_per_us(n: int, dtype: torch.dtype, device: torch.device) -> float:
    a, b, c = (torch.rand(n, n, device=device).to(dtype) for _ in range(3))
    return 2 * n**3 / time_us(lambda: torch.mm(a, b, out=c), device)


def _launches(device: torch.device, tell: Told) -> dict[str, float]:
    """Microseconds that one kernel without work takes in a long run of them."""
    one = torch.zeros(1, device=device)

    def kernels() -> None:
        for _ in range(LAUNCHES):
            one.add_(1)

    tell("launches")
    times_us = {str(Launch.EAGER): time_us(kernels, device) / LAUNCHES}
    if device.type == "cuda":
        replay = in_graph(lambda: one.add_(1), LAUNCHES, device)
        times_us[str(Launch.GRAPH)] = time_us(replay, device) / LAUNCHES
    return times_us


def _quantity(value: float, unit: str, source: str) -> dict[str, Any]:
    return {"value": round(value), "unit": unit, "source": source}


def machine_data(
    name: str,
    title: str,
    ranks: int,
    hardware: Mapping[str, Any],
    rows: Iterable[Mapping[str, Any]],
) -> dict[str, Any]:
    """The values of a machine file for one node, its tables fitted.

    Link rates and what switches add cannot be measured from here: no lower bounds.
    """
    data = {
        "name": name,
        "title": title,
        "ranks_per_node": ranks,
        "in_switch_reduction": False,
        **hardware,
        "rows": list(rows),
    }
    return refitted(data, ())[0]


def group_sizes(ranks: int) -> tuple[int, ...]:
    """Rank counts to measure: powers of two, and all ranks."""
    return tuple(sorted({1 << i for i in range(1, ranks.bit_length())} | {ranks} - {1}))


def measured_machine(
    name: str,
    sizes: Callable[[torch.device], Sequence[int]],
    tell: Callable[[], Told] = lambda: lambda _: None,
) -> dict[str, Any] | None:
    """Measures the machine that this process runs on, alone or as a rank under torchrun.

    Args:
        name: of the machine.
        sizes: payloads in bytes, ascending, for a kind of device.
        tell: called on rank 0; what it returns is told what is being measured.

    Returns:
        The values of a machine file on rank 0, None on others.

    Raises:
        MachineError: the ranks are on several nodes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        device = device_of_rank(0)
        source, title = _source(device), _title(1, device)
        return machine_data(name, title, 1, measure_hardware(device, source, tell()), ())
    ranks, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if ranks != local:
        raise MachineError(
            "machine measure runs on one node",
            found=f"{ranks} ranks, {local} of them on this node",
            remedy="start it with torchrun on one node",
        )
    with joined("commplan machine measure") as device:
        groups = [dist.new_group(list(range(n))) for n in group_sizes(ranks)]
        first = dist.get_rank() == 0
        report = tell() if first else lambda _: None
        return measured_node(name, groups, device, sizes(device), report)


def measured_node(
    name: str,
    groups: Sequence[ProcessGroup | object],
    device: torch.device,
    sizes: Sequence[int],
    tell: Told = lambda _: None,
) -> dict[str, Any] | None:
    """Measures a node from all its ranks.

    Args:
        name: of the machine.
        groups: groups of the first ranks, by size, as ``new_group`` gives them: no group to ranks
            that are not in it. The last one has all.
        device: of this rank.
        sizes: payloads in bytes, ascending.
        tell: told what is being measured.

    Returns:
        The values of a machine file on rank 0, None on others.
    """
    everyone, source = groups[-1], _source(device)
    assert isinstance(everyone, ProcessGroup), "the last group has all ranks"
    first = everyone.rank() == 0
    hardware = measure_hardware(device, source, tell) if first else {}
    rows: list[dict[str, Any]] = []
    for group in groups:
        dist.barrier(everyone)
        if isinstance(group, ProcessGroup):
            rows += measure_collectives(
                group, device, sizes, library=_library(device), source=source, tell=tell
            )
            if device.type == "cuda":
                rows += measure_fused(group, device, sizes, source=source, tell=tell)
    dist.barrier(everyone)
    if not first:
        return None
    return machine_data(name, _title(everyone.size(), device), everyone.size(), hardware, rows)


def _title(ranks: int, device: torch.device) -> str:
    cuda = device.type == "cuda"
    return f"{ranks} x {torch.cuda.get_device_name(device) if cuda else platform.machine()}"


def _library(device: torch.device) -> str:
    if device.type == "cuda":
        return "NCCL " + ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    return f"gloo {torch.__version__}"


def _source(device: torch.device) -> str:
    return f"commplan machine measure, torch {torch.__version__}, {_title(1, device)[4:]}"
