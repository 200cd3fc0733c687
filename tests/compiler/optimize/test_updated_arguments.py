"""An optimized model updates its arguments as the model does: contents, and who is who."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.utils._pytree as pytree
from torch import Tensor, nn

from compiler import optimize_allreduce
from compiler.capture.fake_ranks import fake_process_group
from tests.compiler.optimize.models import HIDDEN, Layer

X = torch.linspace(-1, 1, 4 * HIDDEN).reshape(4, HIDDEN)


@pytest.fixture
def group() -> Iterator[dist.ProcessGroup]:
    with fake_process_group(0, 2):
        world = dist.group.WORLD
        assert world is not None
        yield world


@dataclass
class Memory:
    rows: Tensor
    steps: int = 0


pytree.register_dataclass(Memory)


class Remembering(nn.Module):
    """Keeps rows in every kind of argument that can hold them."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.layer = Layer(group, "a", 1)

    def forward(self, x: Tensor, state: dict[str, Any], memory: Memory) -> Any:
        y = self.layer(x) + state["deep"]["rows"].sum(0)
        state["deep"]["rows"] = torch.cat([state["deep"]["rows"], y])
        state["listed"].append(y.sum())
        state["static"].add_(1)
        memory.rows = y + memory.rows
        return {"y": y, "static": state["static"], "x": x, "memory": memory, "head": x[:1]}


def call(model: nn.Module, steps: int) -> tuple[list[Any], dict[str, Any], Memory]:
    shared = torch.zeros(2)
    state = {
        "deep": {"rows": torch.ones(2, HIDDEN)}, "listed": [], "static": shared, "again": shared,
    }  # fmt: skip
    memory, results = Memory(torch.zeros(4, HIDDEN)), []
    deep, listed = state["deep"], state["listed"]
    for step in range(steps):
        x = X + step
        results.append(model(x, state, memory=memory))
        assert results[-1]["x"] is x
        assert results[-1]["memory"] is memory
        assert results[-1]["static"] is state["static"] is state["again"] is shared
        assert state["deep"] is deep
        assert state["listed"] is listed
    return results, state, memory


def test_arguments_are_updated_as_the_model_updates_them(group: dist.ProcessGroup) -> None:
    model = Remembering(group)
    optimized = optimize_allreduce(model)
    got, want = call(optimized, 2), call(model, 2)
    flat, structure = pytree.tree_flatten(got)
    wanted, expected = pytree.tree_flatten(want)
    assert structure == expected
    for a, b in zip(flat, wanted, strict=True):
        torch.testing.assert_close(a, b)
    assert len(optimized.prepared) == 2, "a list of no tensors, a list of one"


class Adding(nn.Module):
    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.layer = Layer(group, "a", 1)

    def forward(self, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        first.add_(y)
        return y + second


def test_a_tensor_passed_twice_is_written_once(group: dist.ProcessGroup) -> None:
    model = Adding(group)
    optimized = optimize_allreduce(model)
    for alike in (True, False, True):
        mine, own = torch.zeros_like(X), torch.zeros_like(X)
        others = (mine, own) if alike else (torch.zeros_like(X), torch.zeros_like(X))
        got, want = optimized(X, mine, others[0]), model(X, own, others[1])
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(mine, own)
    assert len(optimized.prepared) == 2


def test_a_tensor_passed_twice_to_a_program_is_two_inputs(group: dist.ProcessGroup) -> None:
    class Two(Adding):
        def forward(self, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
            y: Tensor = self.layer(x) + first - second
            return y

    model = Two(group)
    optimized = optimize_allreduce(torch.export.export(model, (X, X + 1, X + 2), strict=False))
    torch.testing.assert_close(optimized(X, X, X), model(X, X, X))
