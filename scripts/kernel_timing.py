"""Times of kernels on streams, in CUDA graphs, and the bytes they move."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from compiler.cost import Machine
from compiler.ir.fused_ops import ALL_REDUCE_NORM
from compiler.runtime.kernels import launch as launching
from compiler.runtime.kernels import select
from compiler.runtime.kernels.launch import Launch, Norm
from scripts.kernel_checks import EPS, ranks_for
from scripts.kernel_streams import StreamRanks

Body = Callable[[int], object]


def graph_time_us(ranks: StreamRanks, body: Body, *, calls: int = 5, repeats: int = 12) -> float:
    """Median microseconds of one call of ``body`` by all ranks together."""
    ranks.warm(body)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ranks.run(*[body] * calls)
    for _ in range(2):
        graph.replay()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1000 / calls)
    return statistics.median(times)


def copy_bandwidth_tb_s() -> float:
    """Of a copy of 1 GiB on the device, bytes read and written."""
    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    times = []
    for _ in range(15):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return 2 * source.nbytes / statistics.median(times) / 1e9


def group_of(rank: int) -> str:
    """The name by which fused ops know the workspace of a rank of this process."""
    return f"rank {rank} of streams"


def serve(ranks: StreamRanks, machine: Machine | None) -> None:
    """Has fused ops run on the workspaces of ``ranks``, their kernels chosen by ``machine``."""
    for rank, workspace in enumerate(ranks.workspaces):
        select.serve(group_of(rank), select.Served(workspace, machine, nccl=False))


class Block:
    """An all_reduce, a residual and a norm on every rank, at one size."""

    def __init__(self, ranks: StreamRanks, rows: int, hidden: int, dtype: torch.dtype) -> None:
        self.ranks, world = ranks, len(ranks.workspaces)
        self.payload_bytes = rows * hidden * dtype.itemsize
        self.world_size = world
        shard_rows = -(-rows // world)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(shape, device="cuda").to(dtype)

        self.x, self.y = [], []
        for workspace in ranks.workspaces:
            first = workspace.signal_bytes(world) + 2 * workspace.slot_bytes
            for number, tensors in enumerate((self.x, self.y)):
                place = workspace.buffer[first + number * workspace.slot_bytes :]
                tensor = place[: self.payload_bytes].view(dtype).view(rows, hidden)
                tensors.append(tensor.copy_(random(rows, hidden)))
        self.residual = [random(rows, hidden) for _ in range(world)]
        self.shard = [random(shard_rows, hidden) for _ in range(world)]
        self.weight = random(hidden)
        self.out = [random(rows, hidden) for _ in range(world)]

    def norm(self, residual: torch.Tensor) -> Norm:
        """In place: its values grow from call to call, which costs the same time."""
        return Norm(residual, residual, self.weight, EPS, 0.0)

    def two_shot_norm(self, launch: Launch | None = None, *, staged: bool = False) -> Body:
        """Fused; between symmetric tensors unless staged."""
        out = self.out if staged else self.y

        def body(rank: int) -> None:
            peers = self.ranks.workspaces[rank].peers
            norm = self.norm(self.shard[rank])
            launching.two_shot(self.x[rank], out[rank], norm, peers, launch, staged=staged)

        return body

    def two_shot_whole_norm(self, launch: Launch | None = None) -> Body:
        """Fused, with a whole residual."""

        def body(rank: int) -> None:
            peers = self.ranks.workspaces[rank].peers
            norm = self.norm(self.residual[rank])
            x, out = self.x[rank], self.out[rank]
            launching.two_shot(x, out, norm, peers, launch, staged=True, whole=True)

        return body

    def unfused(self) -> Body:
        """The all_reduce alone, then addition and norm in one kernel."""
        reduce = self.two_shot_staged()

        def body(rank: int) -> None:
            reduce(rank)
            launching.add_norm(self.out[rank], self.y[rank], self.norm(self.residual[rank]))

        return body

    def op(self) -> Body:
        """The op that graphs call, which chooses its kernel."""
        op, norm = ALL_REDUCE_NORM, (self.weight, EPS, 0.0)
        return lambda rank: op(self.x[rank], self.residual[rank], *norm, group_of(rank))

    def two_shot(self, launch: Launch | None = None, *, staged: bool = False) -> Body:
        """The all_reduce alone."""
        out = self.out if staged else self.y

        def body(rank: int) -> None:
            peers = self.ranks.workspaces[rank].peers
            launching.two_shot(self.x[rank], out[rank], None, peers, launch, staged=staged)

        return body

    def two_shot_staged(self, launch: Launch | None = None) -> Body:
        """The all_reduce alone, through the slots."""
        return self.two_shot(launch, staged=True)

    def one_shot_norm(self, launch: Launch | None = None) -> Body:
        """Fused."""

        def body(rank: int) -> None:
            peers = self.ranks.workspaces[rank].peers
            norm = self.norm(self.residual[rank])
            launching.one_shot(self.x[rank], self.out[rank], norm, peers, launch)

        return body

    def one_shot(self, launch: Launch | None = None) -> Body:
        """The all_reduce alone."""

        def body(rank: int) -> None:
            peers = self.ranks.workspaces[rank].peers
            launching.one_shot(self.x[rank], self.y[rank], None, peers, launch)

        return body

    def then(self, first: Body, add_norm: Callable[..., Any]) -> Body:
        """``first``, then add + norm on its result ``y``, on every rank."""

        def body(rank: int) -> None:
            first(rank)
            add_norm(self.y[rank], self.residual[rank], self.weight)

        return body

    def alone(self, add_norm: Callable[..., Any]) -> Body:
        """Add + norm without communication, on every rank."""
        return lambda rank: add_norm(self.y[rank], self.residual[rank], self.weight)

    def moved_tb_s(self, payloads: float, time_us: float) -> float:
        """Bandwidth if every rank moves ``payloads`` times its payload."""
        return self.world_size * payloads * self.payload_bytes / time_us / 1e6


def add_norm(total: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> Any:
    """What stands behind an all_reduce in a model: y and the next residual."""
    h = total + residual
    return torch.nn.functional.rms_norm(h, h.shape[-1:], weight, EPS), h


def compiled_add_norms() -> dict[str, Callable[..., Any]]:
    """``add_norm`` as ATen runs it, and by Inductor, plain and searching for the best."""
    torch._dynamo.config.recompile_limit = 64
    return {
        "aten": add_norm,
        "inductor": torch.compile(add_norm, dynamic=False),
        "inductor, tuned": torch.compile(
            add_norm, dynamic=False, mode="max-autotune-no-cudagraphs"
        ),
    }


def time_all(console: Console) -> dict[str, Any]:
    """All times; tables on ``console``."""
    bandwidth = copy_bandwidth_tb_s()
    console.print(f"copy bandwidth {bandwidth:.2f} TB/s, bytes read and written")
    largest_rows = max(LARGE_ROWS)
    ranks = ranks_for(8, largest_rows * 4096 * 2, alone=True)
    norms = compiled_add_norms()
    large = [large_row(ranks, rows, norms, bandwidth) for rows in LARGE_ROWS]
    print_rows(console, "two-shot, 8 ranks, hidden 4096, bf16: microseconds", large)
    small = time_small(console)
    return {"copy_tb_s": bandwidth, "two_shot": large, "one_shot": small}


def time_small(console: Console) -> list[dict[str, float]]:
    """Times of small payloads; a table on ``console``."""
    ranks, norms = ranks_for(8, max(SMALL_ROWS) * 4096 * 2, alone=True), compiled_add_norms()
    small = [small_row(ranks, rows, norms) for rows in SMALL_ROWS]
    print_rows(console, "one-shot, 8 ranks, hidden 4096, bf16: microseconds", small)
    return small


LARGE_ROWS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
SMALL_ROWS = (1, 2, 4, 8, 16, 32, 64)


def large_row(
    ranks: StreamRanks, rows: int, norms: dict[str, Callable[..., Any]], bandwidth_tb_s: float
) -> dict[str, float]:
    """Fused two-shot against two-shot all_reduce, then add + norm.

    Bytes, in payloads on each of n ranks: the all_reduce reads and writes 1 + 1; add + norm reads
    2 and writes 2; the fused kernel moves 2 + 2/n, because add and norm touch owned rows only.
    Staged calls copy x into the slot first and y out of it last.
    """
    n = len(ranks.workspaces)
    block = Block(ranks, rows, 4096, torch.bfloat16)

    def time_us(body: Body) -> float:
        return graph_time_us(ranks, body, calls=20, repeats=9)

    fused = time_us(block.two_shot_norm())
    alone = {name: time_us(block.alone(norm)) for name, norm in norms.items()}
    best = norms[min(alone, key=lambda name: alone[name])]
    unfused = time_us(block.then(block.two_shot(), best))
    by_aten = time_us(block.then(block.two_shot(), norms["aten"]))
    staged = time_us(block.two_shot_norm(staged=True))
    staged_unfused = time_us(block.then(block.two_shot(staged=True), best))
    moved = block.moved_tb_s(2 + 2 / n, fused)
    return {
        "rows": rows,
        "fused": fused,
        "all_reduce": time_us(block.two_shot()),
        **alone,
        "all_reduce, aten": by_aten,
        "all_reduce, norm": unfused,
        "ratio": unfused / fused,
        "TB/s": moved,
        "of copy": moved / bandwidth_tb_s,
        "bound by bytes": 6 / (2 + 2 / n),
        "fused, staged": staged,
        "ratio, staged": staged_unfused / staged,
    }


def small_row(
    ranks: StreamRanks, rows: int, norms: dict[str, Callable[..., Any]]
) -> dict[str, float]:
    """Fused one-shot against one-shot all_reduce, then add + norm."""
    block = Block(ranks, rows, 4096, torch.bfloat16)
    times = {"calls": 20, "repeats": 20}
    fused = graph_time_us(ranks, block.one_shot_norm(), **times)
    alone = {name: graph_time_us(ranks, block.alone(norm), **times) for name, norm in norms.items()}
    best = norms[min(alone, key=lambda name: alone[name])]
    by_aten = graph_time_us(ranks, block.then(block.one_shot(), norms["aten"]), **times)
    unfused = graph_time_us(ranks, block.then(block.one_shot(), best), **times)
    return {
        "rows": rows,
        "fused": fused,
        "all_reduce": graph_time_us(ranks, block.one_shot(), **times),
        **alone,
        "all_reduce, aten": by_aten,
        "all_reduce, norm": unfused,
        "ratio": unfused / fused,
        "two-shot, fused": graph_time_us(ranks, block.two_shot_norm(), **times),
    }


def print_rows(console: Console, title: str, rows: list[dict[str, float]]) -> None:
    """A table with the keys as columns."""
    table = Table(title=title, title_justify="left")
    for column in rows[0]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(f"{x:.0f}" if k == "rows" else f"{x:.2f}" for k, x in row.items()))
    console.print(table)
