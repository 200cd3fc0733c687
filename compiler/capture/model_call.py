"""The model as a function of tensors alone: what every tracer calls."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from compiler.capture.call_form import Arguments, check_leaf
from compiler.capture.lift_state import Fixed, LiftedGraph
from compiler.capture.python_reads import Reads
from compiler.capture.pytrees import Flattened, Structure, can_take, opened, rebuilt, unchanged
from compiler.errors import CaptureError


class Outcome:
    """Where the wrapper leaves the result; a plain object, which export does not look into.

    Attributes:
        reads: the Python state of the model that its forward reads.
        leaves: of the result and of the arguments that the model updates: computed values,
            constants, and ``Alias`` for what is an argument's own tensor or container.
        spec: puts them together again, and names the containers that are updated.
    """

    leaves: list[Any]
    spec: Structure

    def __init__(self, reads: Reads) -> None:
        self.reads = reads


class OnTensors(nn.Module):
    """The model as a function of its tensor arguments alone, returning computed leaves alone.

    The model runs on fresh containers, so the caller's stay as they are. What it puts into them
    follows the result in ``outcome``.
    """

    def __init__(self, model: nn.Module, arguments: Arguments, outcome: Outcome) -> None:
        super().__init__()
        self.model = model
        self.training = model.training
        self.given, self.outcome = arguments, outcome

    def forward(self, *tensors: torch.Tensor) -> list[Any]:
        """The computed leaves of ``outcome.leaves``, in order.

        Args:
            tensors: the tensors among the leaves of the arguments, in order.

        Raises:
            CaptureError: a result cannot be a leaf, or the model updates an object that cannot be
                updated after a call.
        """
        following = iter(tensors)
        leaves = [next(following) if is_tensor(x) else x for x in self.given.leaves]
        objects: list[Any] = []
        args, kwargs = rebuilt(self.given.spec, leaves, objects)
        before = [opened(x) for x in objects]
        flat = Flattened(leaves, objects)
        with self.outcome.reads.recording():
            result = self.model(*args, **kwargs)
        flat.add(result)
        updated = [i for i, x in enumerate(objects) if not _same(before[i], opened(x))]
        for i in updated:
            _check_updatable(objects[i])
            node, children = opened(objects[i])
            assert node is not None, "an object among the arguments is a container"
            flat.add_node(replace(node, mutable=False), children)
        for leaf in flat.leaves:
            check_leaf("a result of the model", leaf)
        self.outcome.leaves = flat.leaves
        self.outcome.spec = Structure(tuple(flat.nodes), tuple(updated))
        return [x for x in flat.leaves if is_computed(x)]


def with_leaves(lifted: LiftedGraph, call: Arguments, outcome: Outcome) -> LiftedGraph:
    """A traced wrapper's graph with all leaves of the model's arguments and results.

    Args:
        lifted: arguments and results are the tensors that the wrapper takes and gives.
        call: the arguments.
        outcome: what the wrapper left when it was traced.
    """
    placeholders, results = iter(lifted.arguments), iter(lifted.results)
    arguments = tuple(next(placeholders) if is_tensor(x) else Fixed(x) for x in call.leaves)
    return replace(
        lifted,
        arguments=arguments,
        results=tuple(next(results) if is_computed(x) else Fixed(x) for x in outcome.leaves),
        cached=frozenset(
            x for i, x in enumerate(arguments) if i in call.cached and isinstance(x, str)
        ),
    )


def is_tensor(leaf: Any) -> bool:
    """Whether a leaf of arguments is an input of the graph."""
    return isinstance(leaf, torch.Tensor)


def is_computed(leaf: Any) -> bool:
    """Whether a leaf of results is an output of the graph."""
    return isinstance(leaf, torch.Tensor | torch.SymInt | torch.SymFloat | torch.SymBool)


def _same(before: tuple[Any, list[Any]], after: tuple[Any, list[Any]]) -> bool:
    return before[0] == after[0] and all(map(unchanged, before[1], after[1]))


def _check_updatable(x: Any) -> None:
    if not can_take(x):
        raise CaptureError(
            "the model changes an argument whose class cannot be updated after a call",
            found=f"{type(x).__module__}.{type(x).__qualname__}",
            remedy="use lists, dicts or objects with attributes, or return what is new",
        )
