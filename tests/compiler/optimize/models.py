"""Small tensor-parallel models, as authors write them, for tests on real ranks."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

HIDDEN, INNER = 16, 24


def parameter(*shape: int, seed: str) -> nn.Parameter:
    generator = torch.Generator().manual_seed(sum(map(ord, seed)) * 7919)
    return nn.Parameter(torch.randn(*shape, generator=generator) / 4, requires_grad=False)


class RowParallel(nn.Module):
    """Two layers whose contraction is cut over the ranks; reduces its own output, in place."""

    def __init__(self, group: dist.ProcessGroup, name: str) -> None:
        super().__init__()
        per_rank = INNER // group.size()
        own = slice(group.rank() * per_rank, (group.rank() + 1) * per_rank)
        self.up = nn.Parameter(parameter(INNER, HIDDEN, seed=f"{name} up")[own].clone(), False)
        self.down = nn.Parameter(parameter(HIDDEN, INNER, seed=f"{name} dn")[:, own].clone(), False)
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.linear(nn.functional.silu(nn.functional.linear(x, self.up)), self.down)
        dist.all_reduce(y, group=self.group)
        return y


class Layer(nn.Module):
    def __init__(self, group: dist.ProcessGroup, name: str, branches: int) -> None:
        super().__init__()
        self.norm = nn.Parameter(1 + parameter(HIDDEN, seed=f"{name} norm"), False)
        self.branches = nn.ModuleList(RowParallel(group, f"{name} {i}") for i in range(branches))

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.rms_norm(x, (HIDDEN,), self.norm, 1e-5)
        total = self.branches[0](h)
        for branch in self.branches[1:]:
            total = total + branch(h)
        return x + total


class Stack(nn.Module):
    """A dense layer (one sum) and a layer of two branches (two sums)."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(group, "a", 1), Layer(group, "b", 2)])
        self.scale = 0.5

    def forward(self, x: Tensor, *, bias: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x * self.scale if bias is None else x * self.scale + bias


class Grid(nn.Module):
    """Rows of a contraction over one axis of a grid of ranks, then over the other: two sums."""

    def __init__(self, first: dist.ProcessGroup, second: dist.ProcessGroup, rank: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(parameter(HIDDEN, HIDDEN, seed=f"grid {rank}"), False)
        self.scale = nn.Parameter(1 + parameter(HIDDEN, seed="grid scale"), False)
        self.groups = (first, second)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.linear(x, self.weight)
        dist.all_reduce(y, group=self.groups[0])
        y = y * self.scale
        dist.all_reduce(y, group=self.groups[1])
        return torch.relu(y)


class MaskedExperts(nn.Module):
    """Experts dealt out to ranks: which ones are ours is known by a Python integer alone.

    The masked rows are summed over the ranks. Taken for the same on all ranks, the mask would
    make the sum look like a multiple of one rank's.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.group, self.first = group, group.rank() * 2
        self.experts = parameter(2 * group.size(), HIDDEN, seed="experts")
        self.gate = parameter(HIDDEN, seed="gate")

    def own(self, ids: Tensor) -> Tensor:
        local = ids - self.first
        mine = (local >= 0) & (local < 2)
        return torch.where(mine[:, None], self.experts[ids], 0.0)

    def forward(self, ids: Tensor) -> Tensor:
        first, second = self.own(ids), self.own(ids.flip(0)) * self.gate
        dist.all_reduce(first, group=self.group)
        dist.all_reduce(second, group=self.group)
        return first + second


class Decision(nn.Module):
    """Branches on the values of a tensor."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2 if x.sum() > 0 else x * 3
        dist.all_reduce(y, group=self.group)
        return y


class Counter(nn.Module):
    """Weighs by rank, adds its sum to a cache passed in, in place, and counts calls in a buffer."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.group = group
        self.register_buffer("weight", parameter(group.size(), seed="own")[group.rank()].detach())
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor, cache: Tensor) -> Tensor:
        left, right = x * self.weight, x * self.weight * 3
        dist.all_reduce(left, group=self.group)
        dist.all_reduce(right, group=self.group)
        cache[: x.shape[0]] += left + right
        self.calls += 1
        return cache.sum(0)


class SequenceParallel(nn.Module):
    """Layers whose norms and residual work on shares of rows, as authors write it by hand."""

    def __init__(
        self, group: dist.ProcessGroup, layers: int, hidden: int = HIDDEN, device: str = "cpu"
    ) -> None:
        """On "meta" in bfloat16."""
        super().__init__()
        self.group, n = group, group.size()
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        own = slice(group.rank() * hidden // n, (group.rank() + 1) * hidden // n)

        def weight(seed: str) -> nn.Parameter:
            whole = torch.zeros(hidden, hidden, device=device, dtype=dtype)
            whole = parameter(hidden, hidden, seed=seed).data if device == "cpu" else whole
            return nn.Parameter(whole[own].clone(), False)

        self.first = weight("first")
        self.up = nn.ParameterList(weight(f"up {i}") for i in range(layers))
        self.down = nn.ParameterList(weight(f"down {i}") for i in range(layers))
        self.norms = nn.ParameterList(
            nn.Parameter(torch.full((hidden,), 1 + i / 8, device=device, dtype=dtype), False)
            for i in range(layers)
        )

    def scatter(self, x: Tensor) -> Tensor:
        n = self.group.size()
        torch._check(x.shape[0] % n == 0)
        c10d, name = torch.ops._c10d_functional, self.group.group_name
        return c10d.wait_tensor(c10d.reduce_scatter_tensor(x, "sum", n, name))  # type: ignore[no-any-return]

    def gather(self, x: Tensor) -> Tensor:
        c10d, name = torch.ops._c10d_functional, self.group.group_name
        return c10d.wait_tensor(c10d.all_gather_into_tensor(x, self.group.size(), name))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """x: [tokens, hidden / ranks], columns of the input that this rank holds."""
        x = self.scatter(x @ self.first)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=True):
            y = x.float()
            y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5)
            h = (y * norm.float()).to(x.dtype)
            x = x + self.scatter(torch.tanh(self.gather(h) @ up.t()) @ down)
        return self.gather(x)


def sequence_parallel(
    layers: int = 3, hidden: int = 4096
) -> tuple[SequenceParallel, tuple[Tensor]]:
    """For ``commplan plan``: without weights, as the default process group shards it."""
    group = dist.group.WORLD
    assert group is not None, "a factory is called with a process group"
    model: Any = SequenceParallel(group, layers, hidden, "meta")
    model.tp_plan = {"norms.*": "replicate"} | dict.fromkeys(
        ("first", "up.*", "down.*"), "grouped_gemm"
    )
    shape = 64, hidden // group.size()
    return model, (torch.zeros(shape, device="meta", dtype=torch.bfloat16),)
