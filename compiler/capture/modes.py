"""Which of a model's modules a trace asks whether they train: a graph is that of their answers.

A model that asks none computes the same after ``train()`` and ``eval()``, and need not be captured
again; and a call looks at the modules that were asked alone, instead of at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import fx, nn
from torch._ops import HigherOrderOperator

T = TypeVar("T")


@contextmanager
def asked_to_train(model: nn.Module) -> Iterator[dict[str, bool]]:
    """Within it, modules of ``model`` that are asked whether they train: name -> answer."""
    names = {id(module): name for name, module in model.named_modules()}
    found: dict[str, bool] = {}

    def read(module: nn.Module) -> bool:
        if "training" not in module.__dict__:
            raise AttributeError("training")
        answer: bool = module.__dict__["training"]
        # Compilers, which trace the branches of control flow, refuse side effects in them.
        if not torch.compiler.is_dynamo_compiling() and id(module) in names:
            found[names[id(module)]] = answer
        return answer

    def write(module: nn.Module, answer: bool) -> None:
        module.__dict__["training"] = answer

    assert "training" not in vars(nn.Module), "each module has a flag of its own"
    setattr(nn.Module, "training", property(read, write))  # noqa: B010
    try:
        yield found
    finally:
        delattr(nn.Module, "training")


def watched(model: nn.Module, export: Callable[[], T]) -> tuple[T, dict[str, bool]]:
    """What ``export`` gives, and which modules of ``model`` it asked."""
    try:
        with asked_to_train(model) as asked:
            return export(), asked
    except RuntimeError as error:
        if "RecursionError" not in str(error):
            raise
    # The compiler of torch 2.11 cannot trace what watches within branches of control flow.
    return export(), {name: module.training for name, module in model.named_modules()}


def modes(model: nn.Module, graph: fx.Graph, asked: dict[str, bool]) -> dict[str, bool]:
    """What to compare between calls: those ``asked``, or all where parts were traced unseen."""
    if any(isinstance(node.target, HigherOrderOperator) for node in graph.nodes):
        return {name: module.training for name, module in model.named_modules()}
    return asked
