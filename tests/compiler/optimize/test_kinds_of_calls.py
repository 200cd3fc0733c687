"""What tells calls apart besides their tensors: modes of the model, autocast, Python numbers."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from compiler import CommPlanError, optimize_allreduce
from compiler.capture.fake_ranks import fake_process_group
from tests.compiler.optimize.models import HIDDEN, Stack

X = torch.linspace(-1, 1, 4 * HIDDEN).reshape(4, HIDDEN)


@pytest.fixture
def group() -> Iterator[dist.ProcessGroup]:
    with fake_process_group(0, 2):
        world = dist.group.WORLD
        assert world is not None
        yield world


class Dropping(nn.Module):
    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.stack, self.drop = Stack(group), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.stack(x))


def drops(optimized: nn.Module) -> bool:
    return bool((optimized(X) == 0).any())


def test_train_and_eval_after_a_capture(group: dist.ProcessGroup) -> None:
    model = Dropping(group)
    optimized = optimize_allreduce(model, (X,))
    assert drops(optimized)
    optimized.eval()
    assert not optimized.training
    assert not model.training
    assert not drops(optimized)
    assert torch.equal(optimized(X), model(X))
    model.train()
    assert optimized.training
    assert drops(optimized)
    model.drop.eval()  # the flag of the root alone says nothing
    assert not drops(optimized)
    model.drop.train()
    assert drops(optimized)
    assert len(optimized.prepared) == 2, "one for each answer of the only module that was asked"


def test_a_model_that_asks_no_module_whether_it_trains_is_captured_once(
    group: dist.ProcessGroup,
) -> None:
    optimized = optimize_allreduce(Stack(group), (X,))
    optimized.eval()(X)
    assert len(optimized.prepared) == 1


class OwnTrain(Dropping):
    """Its dropout never trains."""

    def train(self, mode: bool = True) -> OwnTrain:
        super().train(mode)
        self.drop.training = False
        return self


def test_train_is_that_of_the_model(group: dist.ProcessGroup) -> None:
    optimized = optimize_allreduce(OwnTrain(group))
    optimized.train()
    assert optimized.training
    assert not drops(optimized)


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-2)
    assert got.dtype == want.dtype


@pytest.mark.parametrize("first", [True, False])
def test_autocast_is_part_of_a_call(group: dist.ProcessGroup, first: bool) -> None:
    model: Any = Stack(group)
    optimized = optimize_allreduce(model)
    for enabled in (first, not first, first):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            got, want = optimized(X), model(X)
        close(got, want)
        if not enabled:
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert len(optimized.prepared) == 2
    with torch.autocast("cpu", torch.float16):
        close(optimized(X), model(X))
    assert len(optimized.prepared) == 3


class Positioned(Dropping):
    def forward(self, x: Tensor, start: int, heat: float = 1.0) -> Tensor:
        return self.stack(x + start) * heat


def test_a_graph_per_value_of_a_number_is_warned_of_once(group: dist.ProcessGroup) -> None:
    optimized = optimize_allreduce(Positioned(group))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimized(X, 0)
        optimized(X, 1)
        optimized(X, 1)
        assert not [w for w in caught if "Python number" in str(w.message)]
        for start in (2, 3, 2):
            optimized(X, start)
        optimized(X, 0, heat=0.5)
        optimized(X, 1, heat=0.25)
    said = [str(w.message) for w in caught if "Python number" in str(w.message)]
    assert said == [
        "a graph was captured and proven for each value of the Python number 'start' (2 is the "
        "third), and is kept; pass a tensor instead"
    ]
    assert len(optimized.prepared) == 6


@pytest.mark.parametrize(
    ("use", "what"),
    [
        (copy.deepcopy, "can be neither copied nor saved"),
        (copy.copy, "can be neither copied nor saved"),
        (lambda optimized: torch.save(optimized, io.BytesIO()), "can be neither copied nor saved"),
        (optimize_allreduce, "the model is optimized already"),
    ],
)
def test_what_an_optimized_model_is_not_for(
    group: dist.ProcessGroup, use: Callable[[nn.Module], object], what: str
) -> None:
    with pytest.raises(CommPlanError, match=what) as caught:
        use(optimize_allreduce(Stack(group)))
    assert ".original" in caught.value.remedy
    assert type(copy.deepcopy(optimize_allreduce(Linear()).original)) is Linear


class Linear(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 2)


def test_a_call_without_tensors(group: dist.ProcessGroup) -> None:
    with pytest.raises(CommPlanError, match="a call without tensor arguments") as caught:
        optimize_allreduce(Positioned(group))(3, 4)
    assert caught.value.found == "x=3, start=4"


def test_inputs_is_a_mapping(group: dist.ProcessGroup) -> None:
    with pytest.raises(CommPlanError, match="inputs= must be a mapping"):
        optimize_allreduce(Stack(group), inputs="x")  # type: ignore[arg-type]
