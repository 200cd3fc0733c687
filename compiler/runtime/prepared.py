"""One prepared graph: a captured, rewritten and proven form of the model for one kind of call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sympy
import torch
import torch.utils._pytree as pytree
from torch import fx, nn

from compiler.capture import Capture, Fixed
from compiler.capture.arguments import Arguments
from compiler.ir import access
from compiler.ir.placement import Replicate
from compiler.plan.ranges import TokenTable


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
        modules: number of tokens -> the rewritten graph with this process's group names.
        symbol: the size that counts tokens; None where one graph serves for all.
        captured: how it was captured: state, trees of arguments and results, ranges of sizes.
        report: what the optimizer did (plan, verdict, remarks, statistics).
        compare_inputs: compares tensors between ranks; None if there is nobody to ask.
    """

    modules: TokenTable[fx.GraphModule]
    symbol: str | None
    captured: Capture
    report: Any
    compare_inputs: Callable[[Mapping[str, torch.Tensor]], None] | None

    @cached_property
    def module(self) -> fx.GraphModule:
        """One of the graphs; their inputs are the same."""
        return self.modules.ranges()[0].plan

    @cached_property
    def counts_tokens(self) -> tuple[int, int] | None:
        """Position of the argument, and the dimension, whose size counts tokens."""
        tensors = [i for i, x in enumerate(self.captured.arguments) if isinstance(x, str)]
        for at, sizes in zip(tensors, self.sizes, strict=True):
            for dim, size in enumerate(sizes):
                if str(size) == self.symbol:
                    return at, dim
        return None

    @cached_property
    def sizes(self) -> tuple[tuple[Any, ...], ...]:
        """Per tensor argument, its traced sizes as ints and sympy expressions."""
        by_name = {str(n.target): n for n in access.node_of(self.module.graph, "placeholder")}
        return tuple(
            tuple(s if isinstance(s, int) else s.node.expr for s in access.shape(by_name[name]))
            for name in self.captured.arguments
            if isinstance(name, str)
        )

    @cached_property
    def replicated(self) -> tuple[str, ...]:
        """Tensor arguments taken to be the same on all ranks."""
        placed = self.captured.graph.inputs
        return tuple(
            name
            for name in self.captured.arguments
            if isinstance(name, str) and any(isinstance(p, Replicate) for p in placed[name])
        )

    def accepts(self, given: Arguments) -> bool:
        """Whether the sizes of this call are among those the graph was traced for.

        A function of the shapes alone, so that all ranks decide alike, and once per shapes.
        """
        shapes = tuple(x.shape for x in given.leaves if isinstance(x, torch.Tensor))
        known = self.decided.get(shapes)
        if known is None:
            known = self.decided[shapes] = self._fits(shapes)
        return known

    @cached_property
    def decided(self) -> dict[tuple[torch.Size, ...], bool]:
        """Shapes of the tensor arguments seen so far -> whether the graph is for them."""
        return {}

    def _fits(self, shapes: tuple[torch.Size, ...]) -> bool:
        values: dict[sympy.Symbol, int] = {}
        derived: list[tuple[Any, int]] = []
        for traced, shape in zip(self.sizes, shapes, strict=True):
            for expected, size in zip(traced, shape, strict=True):
                if isinstance(expected, int):
                    if expected != size:
                        return False
                elif expected.is_Symbol:
                    if values.setdefault(expected, size) != size:
                        return False
                else:
                    derived.append((expected, size))
        for symbol, size in values.items():
            lower, upper = self.captured.ranges.get(str(symbol), (0, None))
            if size < lower or (upper is not None and size > upper):
                return False
        if any(expected.subs(values) != size for expected, size in derived):
            return False
        return all(bool(guard.subs(values) == True) for guard in self.captured.guards)  # noqa: E712

    def module_for(self, given: Arguments) -> fx.GraphModule:
        """The graph for this call, a function of its shapes alone."""
        if self.counts_tokens is None or len(self.modules.ranges()) == 1:
            return self.module
        at, dim = self.counts_tokens
        return self.modules.plan(given.leaves[at].shape[dim])

    def run(self, model: nn.Module, given: Arguments) -> Any:
        """The model's result for this call; writes back what the model updates in place.

        Args:
            model: holds the state.
            given: the call's arguments in canonical order.
        """
        inputs, written = dict(self.captured.constants), dict[str, torch.Tensor]()
        for name, key in self.captured.state.items():
            inputs[name] = local(model, key)
        for argument, leaf in zip(self.captured.arguments, given.leaves, strict=True):
            if isinstance(argument, str):
                inputs[argument] = leaf.contiguous()
                written[argument] = leaf
        outputs = self.module_for(given)(*[inputs[name] for name in self.placeholders])
        for index, name in self.captured.mutations.items():
            written.get(name, inputs[name]).copy_(outputs[index])
        leaves = [x.value if isinstance(x, Fixed) else outputs[x] for x in self.captured.results]
        return pytree.tree_unflatten(leaves, self.captured.out_spec)

    @cached_property
    def placeholders(self) -> tuple[str, ...]:
        """Names of the graph's inputs in order."""
        return tuple(str(n.target) for n in access.node_of(self.module.graph, "placeholder"))


def local(model: nn.Module, key: str) -> torch.Tensor:
    """The parameter or buffer at ``key``; a DTensor as its local shard."""
    held: Any = model
    for part in key.split("."):
        held = getattr(held, part)
    found: torch.Tensor = held.to_local() if hasattr(held, "to_local") else held
    return found
