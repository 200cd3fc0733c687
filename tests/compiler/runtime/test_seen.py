"""One walk over a call's arguments gives what flattening in canonical order does."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compiler.capture.arguments import CallForm
from compiler.runtime.seen import canonical_order, walked

X, Y, Z = torch.ones(2), torch.ones(2, 3), torch.zeros(2)


class Model(nn.Module):
    def forward(
        self, x: Tensor, cache: Any = None, *, scale: float = 1.0, flag: bool = False, **more: Any
    ) -> Tensor:
        return x


FORM = CallForm.of(Model())
CALLS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((X,), {}),
    ((), {"x": X}),
    ((X, ((Y, Z), [Y, 3])), {}),
    ((X, {"b": Y, "a": Z}), {"scale": 2.0}),
    ((), {"flag": True, "x": X, "cache": (Y, Y)}),
    ((), {"cache": (Y, Y), "x": X, "flag": False}),
    ((X, X), {"z": Z, "a": Y, "scale": 1.0}),
    ((X, None), {"scale": 1.5}),
]


@pytest.mark.parametrize("call", CALLS)
def test_tensors_in_canonical_order(call: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
    args, kwargs = call
    found = walked(args, kwargs)
    assert found is not None
    want, got = FORM.flatten(args, kwargs), canonical_order(FORM, args, kwargs, found)(found)
    assert got.spec == want.spec
    assert all(
        a is b or (not isinstance(b, Tensor) and a == b)
        for a, b in zip(got.leaves, want.leaves, strict=True)
    )


def test_other_values_of_tensors_alone_are_the_same_call() -> None:
    first, again = walked((X, (Y, Z)), {}), walked((Z, (Y + 1, X)), {})
    assert first is not None
    assert again is not None
    assert first.key == again.key
    assert canonical_order(FORM, (X, (Y, Z)), {}, first)(again).leaves[0] is Z


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((X, (Y, Y)), {}),  # shapes differ: Z is [2]
        ((X, [Y, Z]), {}),
        ((X, ((Y,), Z)), {}),
        ((X.double(), (Y, Z)), {}),
        ((torch.ones(3), (Y, Z)), {}),
        ((X, (Y, 1)), {}),
        ((X, (Y, True)), {}),
        ((X, {"a": Y, "b": Z}), {}),
        ((X, {"b": Y, "a": Z}), {}),
        ((X,), {"cache": (Y, Z)}),
        ((X.to("meta"), (Y, Z)), {}),
    ],
)
def test_other_calls_have_other_keys(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    found, other = walked(args, kwargs), walked((X, (Y, Z)), {})
    assert found is not None
    assert other is not None
    assert found.key != other.key


@pytest.mark.parametrize("held", [OrderedDict(a=X), torch.Size([1]), {1, 2}, nn.Linear(1, 1)])
def test_other_containers_are_left_to_flattening(held: Any) -> None:
    assert walked((X, held), {}) is None
