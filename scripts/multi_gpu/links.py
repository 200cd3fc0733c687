"""Collectives on the real links: those of the library, those of our kernels, and fused ones."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from bench import measure
from compiler.cost import Launch, Machine
from compiler.cost.tables import Fused, LibraryClass
from compiler.ir import fused_ops
from compiler.ir.collectives import Kind
from compiler.runtime.kernels import select
from scripts.multi_gpu.ranks import Ranks

HIDDEN = 4096
ONE_SHOT_BYTES = 8 << 20
"""Payload up to which one-shot is measured."""
OPS = torch.ops.commplan
Rows = list[dict[str, Any]]


def measured_links(ranks: Ranks, sizes: Sequence[int], name: str) -> dict[str, Any]:
    """The machine, and the times of our kernels, which stand in no machine file.

    A machine file tells what graphs run: collectives by NCCL, and reductions with an addition and
    RMSNorm behind them by fused kernels. Our all_reduce alone is not among them.

    Returns:
        "machine", values of a machine file, and "kernels", rows like those of machine files; on
        rank 0, nothing on others.
    """
    groups = [dist.new_group(list(range(n))) for n in measure.group_sizes(ranks.size)]
    data = measure.measured_node(name, groups, ranks.device, sizes, by_table(ranks.tell))
    if ranks.cuda:
        alone = kernel_rows(ranks, sizes)
    else:
        alone = []
        ranks.skip("links: our kernels and CUDA graphs, as the ranks run on CPUs")
    return {} if data is None else {"machine": data, "kernels": alone}


def by_table(tell: Callable[[str], None]) -> Callable[[str], None]:
    """Tells each table once, not each payload."""
    titles: set[str] = set()

    def once(what: str) -> None:
        table = what.rsplit(", ", 1)[0]
        if table not in titles:
            titles.add(table)
            tell(table)

    return once


def kernel_rows(ranks: Ranks, sizes: Sequence[int]) -> Rows:
    """Rows of our kernels without a norm, over all ranks."""
    workspace = select.workspace_for(ranks.group)
    if isinstance(workspace, str):
        ranks.skip(f"our kernels on the links: {workspace}")
        return []
    row_bytes = HIDDEN * torch.bfloat16.itemsize
    payloads = [n for n in sizes if row_bytes * ranks.size <= n <= workspace.slot_bytes]
    launches = tuple(Launch) if ranks.graphs else (Launch.EAGER,)
    rows = Rows()
    for name, kind, make in CALLS:
        for launch in launches:
            ranks.tell(f"{name} kernel over {ranks.size} ranks, {launch}")
            points = []
            for payload in payloads:
                if name == "one-shot" and payload > ONE_SHOT_BYTES:
                    break
                call = make(payload // row_bytes, ranks, workspace.arguments)
                points.append([payload, round(time_us(call, launch, ranks), 3)])
            row = {
                "kind": str(kind), "ranks": ranks.size, "library": f"commplan {name}",
                "class": str(LibraryClass.CUSTOM), "launches": [str(launch)],
                "source": f"bench_multi_gpu, torch {torch.__version__}", "rows": points,
            }  # fmt: skip
            rows.append(row)
    return rows


def time_us(call: Callable[[], object], launch: Launch, ranks: Ranks) -> float:
    """Of one call, launched as said, on the slowest rank."""
    return measure.launched_us(call, launch, ranks.device, ranks.group)


Made = Callable[[], object]


def _zeros(rows: int, ranks: Ranks) -> torch.Tensor:
    return torch.zeros(rows, HIDDEN, dtype=torch.bfloat16, device=ranks.device)


def _reduction(op: Any) -> Callable[[int, Ranks, tuple[Any, ...]], Made]:
    def make(rows: int, ranks: Ranks, arguments: tuple[Any, ...]) -> Made:
        x = _zeros(rows, ranks)
        return lambda: op(x, *arguments)

    return make


def _gather(rows: int, ranks: Ranks, arguments: tuple[Any, ...]) -> Made:
    x = _zeros(-(-rows // ranks.size), ranks)
    return lambda: OPS.all_gather(x, rows, *arguments)


def fused_all_reduce(rows: int, ranks: Ranks) -> Made:
    """The op that graphs call, on zeros; it chooses its kernel by payload."""
    x, residual, weight = _zeros(rows, ranks), _zeros(rows, ranks), _zeros(1, ranks)[0]
    name = ranks.group.group_name
    return lambda: fused_ops.ALL_REDUCE_NORM(x, residual, weight, 1e-5, 1.0, name)


def fused_shares(rows: int, ranks: Ranks) -> Made:
    """The op that graphs with shared rows call."""
    x, weight = _zeros(rows, ranks), _zeros(1, ranks)[0]
    residual = _zeros(-(-rows // ranks.size), ranks)
    name, size = ranks.group.group_name, ranks.size
    return lambda: fused_ops.SHARED_NORM(x, residual, weight, 1e-5, 1.0, size, name)


CALLS: tuple[tuple[str, Kind, Callable[[int, Ranks, tuple[Any, ...]], Made]], ...] = (
    ("one-shot", Kind.ALL_REDUCE, _reduction(OPS.one_shot_all_reduce)),
    ("two-shot", Kind.ALL_REDUCE, _reduction(OPS.two_shot_all_reduce)),
    ("two-shot", Kind.REDUCE_SCATTER, _reduction(OPS.reduce_scatter)),
    ("two-shot", Kind.ALL_GATHER, _gather),
)
"""Name, what it does, and how to make a call. There is not an all_to_all kernel."""


def compared(rows: Iterable[Mapping[str, Any]], machine: Machine) -> Rows:
    """Every measured table beside the known machine's tables of the same kind and launch.

    Custom kernels are compared with custom ones, NCCL and gloo with NCCL and gloo.

    Args:
        rows: tables of a machine file's ``rows``.
        machine: the machine to compare with.

    Returns:
        Per pair of tables the median difference and the one furthest from zero, as
        measured / predicted - 1; both None where the machine has no such table.
    """
    compared_rows = Rows()
    for one in rows:
        kind = Fused(one["kind"]) if "+" in one["kind"] else Kind(one["kind"])
        custom = one["class"] == LibraryClass.CUSTOM
        for launch in one["launches"]:
            about = {
                "kind": one["kind"], "ranks": one["ranks"], "library": one["library"],
                "launch": launch, "points": len(one["rows"]),
            }  # fmt: skip
            tables = [
                table
                for table in machine.tables_of(kind, one["ranks"])
                if launch in table.launches
                and (table.library_class is LibraryClass.CUSTOM) == custom
            ]
            for table in tables:
                differences = [
                    time_us * 1e6 / table.curve.time_ps(payload) - 1
                    for payload, time_us in one["rows"]
                ]
                about |= {
                    "known": table.library,
                    "median": statistics.median(differences),
                    "maximum": max(differences, key=abs),
                }
                compared_rows.append(dict(about))
            if not tables:
                compared_rows.append({**about, "known": None, "median": None, "maximum": None})
    return compared_rows
