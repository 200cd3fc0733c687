"""Every kernel on streams against the float64 reference, and under repetition."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from compiler.runtime.kernels import launch
from compiler.runtime.kernels.launch import Norm
from compiler.runtime.kernels.workspace import Workspace
from scripts import kernel_reference as reference
from scripts.kernel_streams import StreamRanks

OPS = torch.ops.commplan
EPS = 1e-5
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Ranks(Protocol):
    """The workspaces of all ranks, or as many times that of the only rank in this process."""

    workspaces: list[Workspace]


@dataclass
class Operands:
    """Fresh random operands of all ranks: xs and residual differ, weight is near 1 - offset."""

    ranks: Ranks
    rows: int
    hidden: int
    dtype: torch.dtype
    offset: float
    seed: int = 0

    def __post_init__(self) -> None:
        generator = torch.Generator("cuda").manual_seed(self.seed)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, device="cuda").to(self.dtype)

        self.world_size = len(self.ranks.workspaces)
        self.shard_rows = -(-self.rows // self.world_size)
        self.xs = [random(self.rows, self.hidden) for _ in range(self.world_size)]
        self.residual = random(self.rows, self.hidden)
        self.weight = 1 - self.offset + 0.1 * random(self.hidden)

    def shard(self, tensor: torch.Tensor, rank: int) -> torch.Tensor:
        """The rows that ``rank`` owns, padded with zeros to shard_rows."""
        part = tensor[rank * self.shard_rows : (rank + 1) * self.shard_rows]
        return torch.cat([part, part.new_zeros(self.shard_rows - len(part), *part.shape[1:])])

    def symmetric(self, rank: int, name: int) -> torch.Tensor:
        """One of two tensors [rows, hidden] behind the slots of ``rank``, which all share."""
        workspace = self.ranks.workspaces[rank]
        first = workspace.signal_bytes(self.world_size) + 2 * workspace.slot_bytes
        place = workspace.buffer[first + name * workspace.slot_bytes :]
        count = self.rows * self.hidden
        return place[: count * self.dtype.itemsize].view(self.dtype).view(self.rows, self.hidden)


Run = Callable[[Operands, int], dict[str, torch.Tensor]]
"""What one rank runs, and its results by the name of what they must equal."""


def in_place_one_shot(o: Operands, rank: int) -> dict[str, torch.Tensor]:
    """Writes over the residual."""
    residual, y = o.residual.clone(), poisoned(o.xs[0])
    norm = (residual, o.weight, y, EPS, o.offset)
    OPS.one_shot_all_reduce_add_rms_norm_(o.xs[rank], *norm, *arguments(o, rank))
    return {"y": y, "h": residual}


def in_place_whole(o: Operands, rank: int) -> dict[str, torch.Tensor]:
    """In two shots, writes over the whole residual."""
    residual, y = o.residual.clone(), poisoned(o.xs[0])
    norm = Norm(residual, residual, o.weight, EPS, o.offset)
    peers = o.ranks.workspaces[rank].peers
    launch.two_shot(o.xs[rank].contiguous(), y, norm, peers, staged=True, whole=True)
    return {"y of h": y, "h": residual}


def in_place_two_shot(o: Operands, rank: int) -> dict[str, torch.Tensor]:
    """Between symmetric tensors, writes over the residual."""
    residual = o.shard(o.residual, rank)
    x, y = o.symmetric(rank, 0), o.symmetric(rank, 1)
    x.copy_(o.xs[rank])
    norm = (residual, o.weight, y, EPS, o.offset)
    OPS.two_shot_all_reduce_add_rms_norm_(x, *norm, *arguments(o, rank))
    return {"y": y.clone(), "h shard": residual}


def symmetric_two_shot(o: Operands, rank: int) -> dict[str, torch.Tensor]:
    """Between symmetric tensors."""
    x, y = o.symmetric(rank, 0), o.symmetric(rank, 1)
    x.copy_(o.xs[rank])
    OPS.two_shot_all_reduce_(x, y, *arguments(o, rank))
    return {"sum": y.clone()}


def symmetric_all_gather(o: Operands, rank: int) -> dict[str, torch.Tensor]:
    """Into a symmetric tensor."""
    y = o.symmetric(rank, 1)
    OPS.all_gather_(o.shard(o.residual, rank), y, *arguments(o, rank))
    return {"residual": y.clone()}


def arguments(o: Operands, rank: int) -> tuple[Any, ...]:
    """Those of the rank's workspace."""
    return o.ranks.workspaces[rank].arguments


def poisoned(like: torch.Tensor) -> torch.Tensor:
    """NaN everywhere, to see what is not written."""
    return torch.full_like(like, torch.nan)


def plain(name: str, *results: str, norm: bool = False) -> Run:
    """A functional op on x."""

    def run(o: Operands, rank: int) -> dict[str, torch.Tensor]:
        whole = name.startswith("one_shot") or name.endswith("_whole")
        residual = o.residual if whole else o.shard(o.residual, rank)
        operands = (residual, o.weight, EPS, o.offset) if norm else ()
        output = getattr(OPS, name)(o.xs[rank], *operands, *arguments(o, rank))
        return dict(zip(results, output if norm else (output,), strict=True))

    return run


def gathered(o: Operands, rank: int) -> dict[str, torch.Tensor]:
    """The residual, put together from its shards."""
    shard = o.shard(o.residual, rank)
    return {"residual": OPS.all_gather(shard, o.rows, *arguments(o, rank))}


RUNS: dict[str, Run] = {
    "one-shot norm": plain("one_shot_all_reduce_add_rms_norm", "y", "h", norm=True),
    "one-shot norm, in place": in_place_one_shot,
    "one-shot": plain("one_shot_all_reduce", "sum"),
    "two-shot norm": plain("two_shot_all_reduce_add_rms_norm", "y", "h shard", norm=True),
    "two-shot norm, whole": plain(
        "two_shot_all_reduce_add_rms_norm_whole", "y of h", "h", norm=True
    ),
    "two-shot norm, whole, in place": in_place_whole,
    "two-shot norm, symmetric": in_place_two_shot,
    "two-shot": plain("two_shot_all_reduce", "sum"),
    "two-shot, symmetric": symmetric_two_shot,
    "reduce-scatter norm": plain("reduce_scatter_add_rms_norm", "y shard", "h shard", norm=True),
    "reduce-scatter": plain("reduce_scatter", "sum shard"),
    "all-gather": gathered,
    "all-gather, symmetric": symmetric_all_gather,
}


def expected(o: Operands) -> dict[str, torch.Tensor]:
    """In float64, by name."""
    total = reference.sum_over_ranks(o.xs)
    y, h = reference.add_rms_norm(total, o.residual, o.weight, EPS, o.offset)
    return {"sum": total, "y": y, "h": h, "residual": o.residual.double()}


def ranks_for(world_size: int, slot_bytes: int, **kwargs: Any) -> StreamRanks:
    """With room for two symmetric tensors of a slot each."""
    return StreamRanks(
        world_size, slot_bytes=slot_bytes, placed_bytes=2 * (slot_bytes + 256), **kwargs
    )


def worst_deviation(ranks: StreamRanks, run: Run, o: Operands) -> float:
    """Of all results on all ranks; infinite where ranks that must agree do not."""
    ranks.warm(lambda rank: run(o, rank) and None)
    for workspace in ranks.workspaces:
        workspace.buffer[workspace.signal_bytes(o.world_size) :].fill_(255)  # NaN in every dtype
    results: list[dict[str, torch.Tensor]] = [{} for _ in ranks.workspaces]
    ranks.run(lambda rank: results[rank].update(run(o, rank)))
    torch.cuda.synchronize()
    if any(not agree(result, results[0]) for result in results):
        return torch.inf
    return max(deviation(o, rank, result) for rank, result in enumerate(results))


def agree(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Whether what two ranks both hold is the same, bit by bit."""
    whole = [name for name in left if not name.endswith(" shard")]
    return all(torch.equal(left[name], right[name]) for name in whole)


def deviation(o: Operands, rank: int, results: dict[str, torch.Tensor]) -> float:
    """Of all results of one rank."""
    worst, exact = 0.0, expected(o)
    if "y of h" in results:  # the norm of what the ranks exchanged, which is rounded
        none = torch.zeros_like(o.residual)
        y, _ = reference.add_rms_norm(results["h"], none, o.weight, EPS, o.offset)
        exact["y of h"] = y
    for name, tensor in results.items():
        wanted = exact[name.removesuffix(" shard")]
        wanted = o.shard(wanted, rank) if name.endswith(" shard") else wanted
        worst = max(worst, reference.deviation(tensor, wanted))
    return worst


def shapes(world_size: int, hidden: int) -> Iterator[tuple[int, int]]:
    """Rows and hidden: the edges of shards, at ``hidden``."""
    for rows in sorted({0, 1, world_size - 1, world_size, world_size + 1, 37, 129}):
        yield rows, hidden


def check_all(ranks: StreamRanks) -> None:
    """Waits for the device; raises if a rank waited in vain."""
    for workspace in ranks.workspaces:
        workspace.check()


def repeated(ranks: StreamRanks, *, launches: int, seed: int) -> int:
    """Wrong elements in ``launches`` calls one after the other, and as many in replays of a graph.

    Every result is compared, bit by bit and on the device, with that of the first call on the
    same operands, which is compared with the reference. Ranks are delayed at random.
    """
    names = tuple(RUNS)
    operands = [
        Operands(ranks, rows, 1024, torch.bfloat16, 0.0, seed + i)
        for i, rows in enumerate((5, 64, 33))
    ]
    world, period = len(ranks.workspaces), len(names) * len(operands)
    assert math.gcd(len(names), len(operands)) == 1, "every kernel meets all operands"
    assert period % 2, "an odd number of calls, so that a replay starts in the other slot"
    wrong = [torch.zeros((), dtype=torch.int64, device="cuda") for _ in range(world)]
    first: dict[tuple[str, int, int], dict[str, torch.Tensor]] = {}
    for name in names:
        for i, o in enumerate(operands):
            assert worst_deviation(ranks, RUNS[name], o) <= 1, f"{name}, {o.rows} rows"
            results: list[dict[str, torch.Tensor]] = [{} for _ in range(world)]
            ranks.run(lambda rank: results[rank].update(RUNS[name](o, rank)))  # noqa: B023
            torch.cuda.synchronize()
            first.update({(name, i, rank): results[rank] for rank in range(world)})
    generator = torch.Generator().manual_seed(seed)

    def call(rank: int, number: int, delay_cycles: int) -> None:
        name, i = names[number % len(names)], number % len(operands)
        if delay_cycles:
            torch.cuda._sleep(delay_cycles)
        for key, tensor in RUNS[name](operands[i], rank).items():
            wrong[rank] += (tensor != first[name, i, rank][key]).sum()

    def calls(numbers: range) -> None:
        cycles = torch.randint(0, 20_000, (len(numbers), world), generator=generator)
        cycles *= torch.rand(len(numbers), world, generator=generator) < 0.1
        ranks.run(
            *(
                lambda rank, n=n, delays=delays: call(rank, n, int(delays[rank]))
                for n, delays in zip(numbers, cycles, strict=True)
            )
        )

    ranks.warm(lambda rank: [call(rank, number, 1) for number in range(period)] and None)
    for count in wrong:
        count.zero_()
    for start in range(0, launches, period):
        calls(range(start, start + period))
    check_all(ranks)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        calls(range(period))
    for _ in range(-(-launches // period)):
        graph.replay()
    check_all(ranks)
    return int(sum(int(count) for count in wrong))
