"""The model on tensors alone: what it returns, what it shares, what it puts into its arguments."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch import nn

from compiler.capture.model_call import TensorCall
from compiler.capture.pytrees import Alias, rebuilt
from compiler.errors import CaptureError

X, Y = torch.ones(2, 3), torch.zeros(2, 3)


class Calls(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any, state: Any = None) -> Any:
        return self.function(x, state)


def wrapped(function: Callable[..., Any], *args: Any) -> tuple[list[Any], TensorCall, Any]:
    """Computed leaves, the call, and the result as a runtime makes it of them."""
    call = TensorCall(Calls(function), args, {})
    given = call.arguments
    computed = call.run(*(x for x in given.leaves if isinstance(x, torch.Tensor)))
    following = iter(computed)
    leaves = [next(following) if isinstance(x, torch.Tensor) else x for x in call.leaves]
    result = rebuilt(call.out_spec, leaves, list(given.objects), given.leaves)
    return computed, call, result


def test_arguments_that_are_returned_are_not_computed() -> None:
    state = {"a": [Y]}
    computed, call, result = wrapped(lambda x, state: (x, state["a"], state, x + 1), X, state)
    assert call.leaves[:-1] == [Alias("leaf", 0), Alias("object", 2), Alias("object", 1)]
    assert len(computed) == 1
    assert not call.out_spec.updated
    assert result[0] is X
    assert result[1] is state["a"]
    assert result[2] is state


def test_containers_take_what_the_model_puts_into_them() -> None:
    inner = [Y]
    state: dict[str, Any] = {"inner": inner, "count": 1, "gone": 2}

    def update(x: torch.Tensor, state: dict[str, Any]) -> Any:
        state["inner"].append(x + 1)
        state["new"] = state["inner"]
        state["count"] += 1
        del state["gone"]
        return x * 2

    _, call, result = wrapped(update, X, state)
    assert call.out_spec.updated == (1, 2)
    assert torch.equal(result, X * 2)
    assert list(state) == ["inner", "count", "new"]
    assert state["inner"] is state["new"] is inner
    assert inner[0] is Y
    assert torch.equal(inner[1], X + 1)
    assert state["count"] == 2


def test_the_caller_sees_nothing_while_the_model_runs() -> None:
    state = [Y]

    def update(x: torch.Tensor, copy: list[Any]) -> Any:
        copy.append(x + 1)
        assert len(state) == 1
        return x

    wrapped(update, X, state)
    assert len(state) == 2


def test_a_tensor_passed_twice_is_one_tensor() -> None:
    def update(x: torch.Tensor, state: list[torch.Tensor]) -> Any:
        assert x is state[0]
        return x + state[0]

    computed, call, _ = wrapped(update, X, [X])
    assert len(computed) == len(call.leaves) == 1


def test_an_object_with_attributes_is_updated() -> None:
    def update(x: torch.Tensor, state: Any) -> Any:
        state.value = x + state.value
        return x

    state = Boxed(Y)
    wrapped(update, X, state)
    assert torch.equal(state.value, X + Y)


class Boxed:
    def __init__(self, value: Any) -> None:
        self.value = value


class Fields(OrderedDict):  # type: ignore[type-arg]
    pass


pytree.register_pytree_node(Boxed, lambda b: ([b.value], None), lambda c, _: Boxed(*c))
pytree.register_pytree_node(
    Fields, lambda f: (list(f.values()), list(f)), lambda c, k: Fields(zip(k, c, strict=True))
)


def test_an_object_that_cannot_be_updated_is_refused() -> None:
    def update(x: torch.Tensor, state: Any) -> Any:
        state["a"] = x
        return x

    with pytest.raises(CaptureError) as caught:
        wrapped(update, X, Fields(a=Y))
    assert str(caught.value) == (
        "the model changes an argument whose class cannot be updated after a call\n"
        f"  found: {__name__}.Fields\n"
        "  remedy: use lists, dicts or objects with attributes, or return what is new"
    )
    wrapped(lambda x, state: (x, state), X, Fields(a=Y))


def test_results_that_are_no_leaves_are_refused() -> None:
    with pytest.raises(CaptureError, match="a result of the model must be a tensor or"):
        wrapped(lambda x, state: (x, object()), X)
