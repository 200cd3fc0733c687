"""What counts as read by a forward, what is named as unwatched, and which forwards are refused."""

from __future__ import annotations

import functools
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compiler.capture.export import trace
from compiler.capture.python_reads import Reads
from compiler.capture.state_owners import ABSENT, Kind, TensorType, same
from compiler.errors import CaptureError

X = torch.ones(2, 4)


def recorded(model: nn.Module) -> Reads:
    reads = Reads(model)
    with torch.no_grad(), reads.recording():
        model(X)
    reads.settle()
    return reads


def values(reads: Reads, *kinds: Kind) -> dict[str, Any]:
    """Label -> value, of what is there and was read."""
    return {
        owner.label(key): value
        for owner in reads.owners.values()
        if owner.kind in kinds
        for key, value in owner.values.items()
        if value is not ABSENT and not isinstance(value, dict)
    }


class Attributes(nn.Module):
    default = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.read, self.unread = 2.0, 3.0
        self.linear = nn.Linear(4, 4)

    @property
    def total(self) -> float:
        return self.read + self.default

    def total_of(self) -> float:
        return self.total

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x) * self.total
        return y * getattr(self, "missing", 1.0)


def test_what_the_forward_asks_for_counts_and_nothing_else() -> None:
    model = Attributes()
    reads = recorded(model)
    held = reads.owners[id(vars(model))].values
    assert held["read"] == 2.0
    assert {"unread", "training"}.isdisjoint(held)
    assert held["default"] is held["missing"] is ABSENT
    assert reads.owners[id(Attributes)].values["default"] == 1.0
    tensors = values(reads, Kind.TENSORS)
    assert {k: v for k, v in tensors.items() if v} == {
        "linear.weight": TensorType.of(model.linear.weight),
        "linear.bias": TensorType.of(model.linear.bias),
    }
    assert "__getattribute__" not in vars(nn.Module)


MODEL = Attributes()


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = 2.0

    def forward(self, x: Tensor) -> Tensor:
        scale: float = vars(self)["scale"]
        return x * scale


def test_reading_the_dictionary_of_a_module_reads_all_of_it() -> None:
    model = Everything()
    owner = recorded(model).owners[id(vars(model))]
    assert owner.whole
    assert owner.values["scale"] == 2.0


class Holder:
    def __init__(self, inner: object) -> None:
        self.inner = inner


class Slots:
    __slots__ = ("gain",)

    def __init__(self) -> None:
        self.gain = 1.0


class Holding(nn.Module):
    def __init__(self, held: object) -> None:
        super().__init__()
        self.held = held

    def forward(self, x: Tensor) -> Tensor:
        return x if self.held else -x


@pytest.mark.parametrize(
    ("held", "label", "value"),
    [
        (Holder({"a": [7]}), "held.inner['a'][0]", 7),
        ((Holder(7),), "held[0].inner", 7),
        (functools.partial(max, Holder(7)), "held[1][0].inner", 7),
        ([nn.Linear(1, 1)], "held[0]", None),
    ],
)
def test_contents_of_what_is_held_count(held: object, label: str, value: object) -> None:
    read = values(recorded(Holding(held)), Kind.ATTRIBUTES, Kind.ITEMS, Kind.SEQUENCE)
    assert label in read
    assert value is None or read[label] == value


@pytest.mark.parametrize(
    ("held", "unwatched"),
    [
        (Slots(), {"held": "its class has __slots__"}),
        ([[[[7]]]], {"held[0][0][0]": "more than 3 containers deep"}),
        ([0] * 1001, {"held": "more than 1000 items"}),
        ([torch.device("cpu"), torch.distributed, len], {}),
    ],
)
def test_what_cannot_be_watched_is_named(held: object, unwatched: dict[str, str]) -> None:
    assert recorded(Holding(held)).unwatched == unwatched


OFFSET, DEEP = 1.0, 2.0


def helper(x: Tensor) -> Tensor:
    return x + OFFSET


def shifted(amount: float) -> Any:
    def shift(x: Tensor) -> Tensor:
        return helper(x) + amount

    return shift


class Calling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = shifted(5.0)
        self.register_forward_hook(lambda module, args, result: result * DEEP)

    def own(self, x: Tensor) -> Tensor:
        return torch.stack([self.shift(y) for y in x])

    def forward(self, x: Tensor) -> Tensor:
        return self.own(x)


def test_functions_that_run_give_global_names_and_closures() -> None:
    read = values(recorded(Calling()), Kind.GLOBALS, Kind.CELLS)
    names = {label.rpartition(".")[2]: value for label, value in read.items()}
    assert names["OFFSET"] == 1.0
    assert names["DEEP"] == 2.0
    assert names["amount"] == 5.0
    assert names["helper"] is helper


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.state = Holder(0)

    def forward(self, x: Tensor) -> Tensor:
        self.state.inner += 1  # type: ignore[operator]
        return x * self.state.inner


def test_a_parameter_that_forward_hides_meanwhile_counts_as_it_is_before_and_after() -> None:
    class Hides(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            bias, self.bias = self.bias, None
            result = super().forward(x)
            self.bias = bias
            return result

    assert values(recorded(Hides(4, 4)), Kind.TENSORS)["bias"].shape == (4,)


class MadeAnew(OrderedDict[str, type]):
    """As transformers' table of activations: an item is made when it is read."""

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(key)()


def test_items_count_as_they_are_stored() -> None:
    class Acts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.acts = MadeAnew(silu=nn.SiLU)

        def forward(self, x: Tensor) -> Tensor:
            return self.acts["silu"](x)  # type: ignore[no-any-return]

    assert values(recorded(Acts()), Kind.ITEMS)["acts['silu']"] is nn.SiLU


def test_a_forward_that_changes_what_it_reads_is_refused() -> None:
    with pytest.raises(CaptureError) as caught:
        trace(Counting(), (X,), {})
    assert caught.value.what == "the model's forward changes Python state that it reads"
    assert caught.value.found.startswith("state.inner changed from 0 to ")
    assert "buffer" in caught.value.remedy


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError


def test_modules_are_as_before_after_a_failed_forward() -> None:
    model = Failing()
    with pytest.raises(ValueError), Reads(model).recording():  # noqa: PT011
        model(X)
    assert "__getattribute__" not in vars(nn.Module)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.cond(x.sum() > 0, lambda x: x.cos(), lambda x: x.sin(), (x,))
        return y


def test_branches_are_compiled_as_if_nobody_read() -> None:
    with pytest.raises(CaptureError, match="a branch"):
        trace(Branching(), (X,), {})


@pytest.mark.parametrize(
    ("old", "new", "equal"),
    [
        (1.0, float("1"), True),
        (1, True, False),
        (1, 1.0, False),
        (0.0, -0.0, False),
        (float("nan"), float("nan"), True),
        ([1], [1], False),
        (MODEL.total_of, MODEL.total_of, True),
    ],
)
def test_what_is_the_same(old: object, new: object, equal: bool) -> None:
    assert same(old, new) is equal


class Containers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scaling: dict[str, Any] = {"default": [2.0]}

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x * self.scaling["default"][0]
        return y


def test_a_trace_leaves_a_model_its_lists_and_dicts() -> None:
    model = Containers()
    scaling, default = model.scaling, model.scaling["default"]
    reads = trace(model, (X,), {}).reads
    assert model.scaling is scaling
    assert model.scaling["default"] is default
    assert reads is not None
    assert reads.owners[id(default)].values == {0: 2.0}
