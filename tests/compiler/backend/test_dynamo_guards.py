"""Changes that Dynamo does not see let it trace anew, and others do not."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.modules import module as nn_module

from compiler.backend.dynamo_guards import unchanged


class Scaled(nn.Module):
    def scale(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale(x)


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scaled, self.linear = Scaled(), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.scaled(x))


Change = Callable[[Stack, ExitStack], Any]


def twice(module: nn.Module, args: Any, result: torch.Tensor) -> torch.Tensor:
    return result * 2


def hooked(model: Stack, stack: ExitStack) -> None:
    stack.callback(model.linear.register_forward_hook(twice).remove)


def hooked_before(model: Stack, stack: ExitStack) -> None:
    stack.callback(model.scaled.register_forward_pre_hook(lambda _, args: (args[0] + 1,)).remove)


def hooked_everywhere(model: Stack, stack: ExitStack) -> None:
    stack.callback(nn_module.register_module_forward_hook(twice).remove)


def forward_replaced(model: Stack, stack: ExitStack) -> None:
    stack.enter_context(patch.object(Scaled, "forward", lambda self, x: x * 3))


def method_replaced(model: Stack, stack: ExitStack) -> None:
    stack.enter_context(patch.object(Scaled, "scale", lambda self, x: x * 3))


def library_replaced(model: Stack, stack: ExitStack) -> None:
    stack.enter_context(patch.object(nn.Linear, "forward", lambda self, x: x))


@pytest.mark.parametrize(
    "change",
    [
        hooked, hooked_before, hooked_everywhere, forward_replaced, method_replaced,
        library_replaced,
    ],
)  # fmt: skip
def test_what_changes_the_result_is_traced_anew(change: Change) -> None:
    torch._dynamo.reset()
    model, x = Stack(), torch.ones(2, 4)
    counter = CompileCounterWithBackend("commplan")
    with torch.no_grad(), ExitStack() as stack:
        model.compile(backend=_eager(counter))
        model(x)
        change(model, stack)
        torch.testing.assert_close(model(x), model._call_impl(x))
    assert counter.frame_count > 1


def test_what_does_not_change_the_result_is_not_traced_anew() -> None:
    torch._dynamo.reset()
    model, x = Stack(), torch.ones(2, 4)
    counter = CompileCounterWithBackend("commplan")
    with torch.no_grad():
        model.compile(backend=_eager(counter))
        model(x)
        nn.Linear(2, 2).register_forward_hook(twice)
        hook = model.linear.register_forward_hook(twice)
        hook.remove()
        with patch.object(Scaled, "scale", lambda self, x: x):
            pass
        model(x)
    assert counter.frame_count == 1


def test_a_change_that_was_undone_is_seen_when_it_comes_back() -> None:
    model = Stack()
    check = unchanged([model.linear._forward_hooks], [*model.modules()])
    assert check(None)
    with patch.object(Scaled, "scale", lambda self, x: x):
        assert not check(None)
    assert check(None)
    with _hook(model):
        assert not check(None)
    assert check(None)


def test_a_dynamo_that_misses_attributes_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compiler.backend.dynamo_guards.MISSES_ATTRIBUTES", True)
    counter = CompileCounterWithBackend("eager")
    model = torch.compile(Stack(), backend=_eager(counter))
    with torch.no_grad(), pytest.warns(UserWarning, match="attributes of a model were changed"):
        model(torch.ones(2, 4))


@contextmanager
def _hook(model: Stack) -> Iterator[None]:
    handle = model.linear.register_forward_hook(twice)
    yield
    handle.remove()


def _eager(counter: CompileCounterWithBackend) -> Any:
    """The backend with its own count of graphs, op by op."""
    from compiler.backend import commplan

    def backend(gm: Any, example_inputs: Any) -> Any:
        counter.frame_count += 1
        return commplan(gm, example_inputs, options={"inner": "eager"})

    return backend
