"""One prepared graph: a captured, rewritten and proven form of the model for one kind of call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sympy
import torch
import torch.utils._pytree as pytree
from torch import fx, nn

from compiler.capture.arguments import Arguments
from compiler.capture.export import Traced
from compiler.capture.lift import Fixed, StateKind
from compiler.ir import access


def call_kind(given: Arguments) -> tuple[Any, ...]:
    """What must agree for two calls to run one graph, sizes of two and more left out."""
    return given.spec, tuple(
        (
            x.dtype,
            x.device,
            tuple(size if size < 2 else -1 for size in x.shape),
        )
        if isinstance(x, torch.Tensor)
        else (type(x), x)
        for x in given.leaves
    )


@dataclass(frozen=True)
class Prepared:
    """A graph, and how to call it as the model is called.

    Attributes:
        module: the rewritten graph with this process's group names.
        traced: how it was traced: state, trees of arguments and results, ranges of sizes.
        result: what the optimizer returned for it (plan, verdict, remarks, statistics).
        exchanged: compares inputs taken to be replicated between ranks; None if there is but one.
    """

    module: fx.GraphModule
    traced: Traced
    result: Any
    compare_inputs: Callable[[Mapping[str, torch.Tensor]], None] | None

    @cached_property
    def sizes(self) -> tuple[tuple[Any, ...], ...]:
        """Per tensor argument, its traced sizes as ints and sympy expressions."""
        by_name = {str(n.target): n for n in access.node_of(self.module.graph, "placeholder")}
        return tuple(
            tuple(s if isinstance(s, int) else s.node.expr for s in access.shape(by_name[name]))
            for name in self.traced.lifted.arguments
            if isinstance(name, str)
        )

    @cached_property
    def state(self) -> tuple[tuple[str, str, StateKind], ...]:
        """Placeholder, key in the model and kind of every lifted tensor."""
        return tuple((n, s.key, s.kind) for n, s in self.traced.lifted.state.items())

    def accepts(self, given: Arguments) -> bool:
        """Whether the sizes of this call are among those the graph was traced for.

        A function of the shapes alone, so that all ranks decide alike.
        """
        values: dict[sympy.Symbol, int] = {}
        tensors = [x for x in given.leaves if isinstance(x, torch.Tensor)]
        derived: list[tuple[Any, int]] = []
        for traced, tensor in zip(self.sizes, tensors, strict=True):
            for expected, size in zip(traced, tensor.shape, strict=True):
                if isinstance(expected, int):
                    if expected != size:
                        return False
                elif expected.is_Symbol:
                    if values.setdefault(expected, size) != size:
                        return False
                else:
                    derived.append((expected, size))
        for symbol, size in values.items():
            lower, upper = self.traced.ranges.get(str(symbol), (0, None))
            if size < lower or (upper is not None and size > upper):
                return False
        if any(expected.subs(values) != size for expected, size in derived):
            return False
        return all(bool(guard.subs(values) == True) for guard in self.traced.guards)  # noqa: E712

    def run(self, tensors_of: Mapping[str, torch.Tensor], given: Arguments) -> Any:
        """The model's result for this call; writes back what the model updates in place.

        Args:
            tensors_of: placeholder -> tensor of the model.
            given: the call's arguments in canonical order.
        """
        inputs = dict(tensors_of)
        for name, leaf in zip(self.traced.lifted.arguments, given.leaves, strict=True):
            if isinstance(name, str):
                inputs[name] = leaf
        outputs = self.module(*[inputs[name] for name in self.placeholders])
        for index, name in self.traced.lifted.mutations.items():
            inputs[name].copy_(outputs[index])
        leaves = [
            x.value if isinstance(x, Fixed) else outputs[x] for x in self.traced.lifted.results
        ]
        return pytree.tree_unflatten(leaves, self.traced.out_spec)

    @cached_property
    def placeholders(self) -> tuple[str, ...]:
        """Names of the graph's inputs in order."""
        return tuple(str(n.target) for n in access.node_of(self.module.graph, "placeholder"))


def state_tensors(
    model: nn.Module, state: Sequence[tuple[str, str, StateKind]], constants: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """Placeholder -> the tensor the model holds now; DTensors as their local shard."""
    found: dict[str, torch.Tensor] = {}
    for name, key, kind in state:
        if kind is StateKind.CONSTANT:
            held: Any = constants[name]
        else:
            held = model
            for part in key.split("."):
                held = getattr(held, part)
        found[name] = held.to_local() if hasattr(held, "to_local") else held
    return found
