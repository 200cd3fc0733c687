"""Which of a model's modules a trace asks whether they train: a graph is that of their answers.

A model that asks none computes the same after ``train()`` and ``eval()``, and need not be captured
again; and a call looks at the modules that were asked alone, instead of at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch._ops import HigherOrderOperator
from torch.export import ExportedProgram


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


def watched(
    model: nn.Module, export: Callable[[], ExportedProgram]
) -> tuple[ExportedProgram, dict[str, bool]]:
    """What ``export`` gives, and what to compare between calls: module -> whether it trains.

    Those that were asked, or all where branches of control flow were traced unseen.
    """
    try:
        with asked_to_train(model) as asked:
            program = export()
    except RuntimeError as error:
        if "RecursionError" not in str(error):
            raise
        program = export()  # the compiler of torch 2.11 cannot trace what watches within branches
    if any(isinstance(node.target, HigherOrderOperator) for node in program.graph.nodes):
        asked = {name: module.training for name, module in model.named_modules()}
    return program, asked
