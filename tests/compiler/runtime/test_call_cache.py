"""One walk over a call's arguments gives what flattening in canonical order does."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compiler.capture.call_form import CallForm
from compiler.runtime.call_cache import Recognizer, canonical_order, walked

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
    assert all(a is b for a, b in zip(got.objects[1:], want.objects[1:], strict=True))
    assert got.cached == want.cached


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
        ((X, (Y, X)), {}),
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
    assert (found.key, found.shapes) != (other.key, other.shapes)


def test_sizes_are_not_part_of_the_key() -> None:
    found, other = walked((X, [Y]), {}), walked((torch.ones(3), [Z]), {})
    assert found is not None
    assert other is not None
    assert found.key == other.key
    assert found.shapes != other.shapes


def test_calls_are_arranged_once() -> None:
    form = CallForm.of(Model())
    flattened: list[Any] = []

    class Counting(CallForm):
        def flatten(self, args: Any, kwargs: Any) -> Any:
            flattened.append(args)
            return form.flatten(args, kwargs)

    recognize = Recognizer(Counting(form.signature, form.as_given))
    (first, key), (second, other) = (recognize((x, {"a": [Y]}), {}) for x in (X, torch.ones(5)))
    assert len(flattened) == 1
    assert key != other
    assert first.leaves[0] is X
    assert second.leaves[0].shape == (5,)
    assert recognize((X, OrderedDict(a=X)), {})[1] is None


cache_utils = pytest.importorskip("transformers.cache_utils")


def cache(tokens: int) -> Any:
    layer = cache_utils.DynamicSlidingWindowLayer(sliding_window=4)
    made = cache_utils.Cache(layers=[layer])
    made.update(*[torch.ones(1, 1, tokens, 2)] * 2, 0)
    return made


def test_caches_are_walked() -> None:
    one, two = cache(2), cache(3)
    call, again = walked((X,), {"cache": (one, one)}), walked((X,), {"cache": (two, two)})
    assert call is not None
    assert again is not None
    assert call.key == again.key
    want = FORM.flatten((X,), {"cache": (two, two)})
    got = canonical_order(FORM, (X,), {"cache": (one, one)}, call)(again)
    assert (got.spec, got.cached) == (want.spec, want.cached)
    assert all(a is b or a == b for a, b in zip(got.leaves, want.leaves, strict=True))
    assert got.objects[1] is two
    others = cache(2), cache(2)
    assert walked((X,), {"cache": others}).key != call.key  # type: ignore[union-attr]


@pytest.mark.parametrize("held", [OrderedDict(a=X), torch.Size([1]), {1, 2}, nn.Linear(1, 1)])
def test_other_containers_are_left_to_flattening(held: Any) -> None:
    assert walked((X, held), {}) is None
