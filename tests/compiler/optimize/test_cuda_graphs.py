"""Whole models with fused kernels, compiled and in CUDA graphs: two ranks share a device."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from compiler import Verdict, optimize_allreduce
from compiler.cost import Machine
from compiler.cost.machine_files import parse_machine
from compiler.ir import fused_ops
from compiler.ir.collectives import OPS
from compiler.runtime.counting import count_collectives
from compiler.runtime.kernels import select
from tests.support.machines import data
from tests.support.one_gpu import RANKS, on_one_gpu

HIDDEN, INNER, EPS = 256, 512, 1e-5
LARGEST = 256
"""Token counts over this are not run: the ranks take turns on the device at every barrier."""


class Branch(nn.Module):
    """Two matrices whose contraction is cut over the ranks."""

    def __init__(self, group: dist.ProcessGroup, seed: int, device: str) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        own = slice(
            group.rank() * INNER // group.size(), (group.rank() + 1) * INNER // group.size()
        )
        up, down = (
            torch.randn(*s, generator=generator) for s in ((INNER, HIDDEN), (HIDDEN, INNER))
        )
        self.up = nn.Parameter((up[own] / HIDDEN**0.5).to(device, torch.bfloat16), False)
        self.down = nn.Parameter((down[:, own] / INNER**0.5).to(device, torch.bfloat16), False)
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.linear(nn.functional.silu(nn.functional.linear(x, self.up)), self.down)
        dist.all_reduce(y, group=self.group)
        return y


class Normed(nn.Module):
    """Layers of one, two and one branches; every sum meets the residual, then a norm."""

    def __init__(self, group: dist.ProcessGroup, device: str = "cuda") -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(Branch(group, 10 * i + j, device) for j in range(count))
            for i, count in enumerate((1, 2, 1))
        )
        weights = torch.linspace(0.5, 1.5, 4 * HIDDEN).view(4, HIDDEN)
        self.weights = nn.ParameterList(
            nn.Parameter(weight.to(device, torch.bfloat16), False) for weight in weights
        )

    def forward(self, x: Tensor) -> Tensor:
        for weight, branches in zip(self.weights, self.layers, strict=False):
            h = nn.functional.rms_norm(x, (HIDDEN,), weight, EPS)
            total = branches[0](h)
            for branch in branches[1:]:
                total = total + branch(h)
            x = x + total
        return nn.functional.rms_norm(x, (HIDDEN,), self.weights[-1], EPS)


def round_machine() -> Machine:
    """A machine on which shares pay from some tens of rows on."""
    known = data(RANKS, memory=4000, start_ns=10_000)
    known["matmul"]["bfloat16"] = known["matmul"]["float32"]
    return parse_machine(known, Path("round.json"))


def counts_of(optimized: Any) -> list[int]:
    """A number of tokens from every range of the table, in its middle or as large as may be."""
    ranges = optimized.report.result.table.ranges()
    step = optimized.report.result.table.ranks
    return [r.first + (min(r.last, LARGEST) - r.first) // 2 // step * step for r in ranges]


def tokens_of(count: int, seed: int, device: str = "cuda") -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, HIDDEN, generator=generator).to(device, torch.bfloat16)


def gap(found: Tensor, exact: Tensor) -> float:
    return float(((found.double() - exact).pow(2).mean() / exact.pow(2).mean()).sqrt())


def captured(optimized: Any, x: Tensor) -> Callable[[Tensor], Tensor]:
    """A CUDA graph of the call, captured by hand."""
    static, stream = x.clone(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        optimized(static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = optimized(static)

    def replay(given: Tensor) -> Tensor:
        static.copy_(given)
        graph.replay()
        return y.clone()

    return replay


def in_every_range(group: dist.ProcessGroup) -> dict[str, Any]:
    model, oracle = Normed(group), Normed(group).double()
    optimized = optimize_allreduce(model, (tokens_of(5, 0),), machine=round_machine())
    reasons = [r.reason for r in optimized.report.remarks]
    workspace = select._workspaces.get(str(group.group_name))
    assert workspace is not None, reasons
    found: dict[str, Any] = {
        "verdict": optimized.report.verdict,
        "remarks": reasons,
        "slot_bytes": workspace.slot_bytes,
        "ranges": {},
    }
    for count in counts_of(optimized):
        xs = [tokens_of(count, seed) for seed in range(4)]
        exact = [oracle(x.double()) for x in xs]
        nodes = optimized.graph_module(count).graph.nodes
        here: dict[str, Any] = {
            "fused": [str(n.target) for n in nodes if n.target in FUSED],
            "left": [str(n.target) for n in nodes if n.target in OPS],
            "written": gap(model(xs[0]), exact[0]),
        }
        eager = [optimized(x) for x in xs]
        with count_collectives() as counted:
            optimized(xs[0])
        here["counted"] = (dict(counted.collectives), dict(counted.fused))
        torch.cuda.set_sync_debug_mode("error")
        optimized(xs[0])
        torch.cuda.set_sync_debug_mode("default")
        here["eager"] = max(map(gap, eager, exact))
        replay = captured(optimized, xs[0])
        here["replays equal eager"] = all(
            torch.equal(replay(x), y) for x, y in zip(xs, eager, strict=True)
        )
        for mode in ("default", "reduce-overhead"):
            torch._dynamo.reset()
            compiled = torch.compile(optimized, mode=mode, dynamic=False)
            here[mode] = max(gap(compiled(x).clone(), y) for x, y in zip(xs, exact, strict=True))
        found["ranges"][count] = here
    found["slot_bytes after"] = select._workspaces[str(group.group_name)].slot_bytes
    return found


FUSED = (fused_ops.ALL_REDUCE_NORM, fused_ops.SHARED_NORM)


def on_two_streams(group: dist.ProcessGroup) -> dict[str, Any]:
    """Calls that alternate between streams which nobody orders; and both in one capture."""
    rows, calls, name = 64, 40, str(group.group_name)
    shape = rows * HIDDEN * 2
    small = select.workspace_for(group, shape // 2)
    large = select.workspace_for(group, shape)
    again = select.workspace_for(group, 16)
    assert not isinstance(small, str), small
    weight = torch.ones(HIDDEN, device="cuda", dtype=torch.bfloat16)
    residual = tokens_of(rows, 1000)
    parts = [[tokens_of(rows, RANKS * i + rank) for rank in range(RANKS)] for i in range(calls)]
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()

    def call(i: int) -> Tensor:
        x = parts[i][group.rank()]
        found: Tensor = fused_ops.ALL_REDUCE_NORM(x, residual, weight, EPS, 0.0, name)[1]
        return found

    def wrong(i: int, h: Tensor) -> float:
        exact = sum(p.double() for p in parts[i]) + residual.double()
        return float(((h.double() - exact).abs() / exact.abs().clamp(min=1)).max())

    summed = []
    for i in range(calls):
        with torch.cuda.stream(streams[i % 2]):
            if i % 3 == group.rank():
                torch.cuda._sleep(2_000_000)
            summed.append(call(i))
    torch.cuda.synchronize()
    graph, forked = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.graph(graph):
        forked.wait_stream(torch.cuda.current_stream())
        both = [call(0)]
        with torch.cuda.stream(forked):
            both.append(call(1))
        both.append(call(2))
        torch.cuda.current_stream().wait_stream(forked)
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    return {
        "alternating": max(wrong(i, h) for i, h in enumerate(summed)),
        "forked": max(wrong(i, h) for i, h in enumerate(both)),
        "grown": (large is not small, again is large),
        "slots": (small.slot_bytes, large.slot_bytes),
    }


@pytest.mark.gpu
def test_every_range_of_tokens() -> None:
    for found in on_one_gpu(in_every_range):
        print({k: v for k, v in found.items() if k != "remarks"})
        assert found["verdict"] is Verdict.EQUIVALENT
        assert found["slot_bytes"] == found["slot_bytes after"], "sized once"
        kinds = {tuple(here["fused"]) for here in found["ranges"].values()}
        assert len(kinds) >= 2, "some ranges share rows, some do not"
        for count, here in found["ranges"].items():
            assert here["left"] == [], (count, found["remarks"])
            assert len(here["fused"]) == 3
            counted, fused = here["counted"]
            assert counted == fused, count
            for way in ("eager", "default", "reduce-overhead"):
                assert here[way] < 1.2 * here["written"], (count, way, here)
            assert here["replays equal eager"], count


@pytest.mark.gpu
def test_calls_from_several_streams_run_one_after_the_other() -> None:
    for found in on_one_gpu(on_two_streams):
        assert max(found["alternating"], found["forked"]) < 2**-7, found
        assert found["grown"] == (True, True)
        assert found["slots"] == (64 * HIDDEN, 2 * 64 * HIDDEN)


def without_kernels(group: dist.ProcessGroup) -> dict[str, Any]:
    """Differences from the float64 model, and remarks, where gloo gathers shares."""
    model, oracle = Normed(group), Normed(group).double()
    optimized = optimize_allreduce(
        model, (tokens_of(5, 0),), machine=round_machine(), kernels="off"
    )
    found: dict[str, Any] = {"remarks": [r.reason for r in optimized.report.remarks], "gaps": {}}
    for count in counts_of(optimized):
        x = tokens_of(count, 0)
        exact = oracle(x.double())
        found["gaps"][count] = gap(optimized(x), exact), gap(model(x), exact)
    return found


@pytest.mark.gpu
def test_shares_are_gathered_in_host_memory() -> None:
    for found in on_one_gpu(without_kernels):
        assert any("all_gathers go through host memory" in why for why in found["remarks"])
        for count, (ours, written) in found["gaps"].items():
            assert ours < 1.2 * written, count


def ranges_on_cpu(group: dist.ProcessGroup) -> tuple[list[int], list[set[str]], list[str]]:
    """As ``in_every_range`` begins, where nothing is fused."""
    optimized = optimize_allreduce(
        Normed(group, "cpu"), (tokens_of(5, 0, "cpu"),), machine=round_machine(), group=group
    )
    counts = counts_of(optimized)
    graphs = [optimized.graph_module(n).graph for n in counts]
    return (
        counts,
        [{str(OPS[n.target]) for n in graph.nodes if n.target in OPS} for graph in graphs],
        [r.reason for r in optimized.report.remarks],
    )


def test_the_ranges_share_rows_and_do_not(gloo_pool: Any) -> None:
    for counts, kinds, _ in gloo_pool(RANKS).run(ranges_on_cpu):
        assert max(counts) <= LARGEST
        assert {"all_reduce"} in kinds
        assert {"reduce_scatter", "all_gather"} in kinds
