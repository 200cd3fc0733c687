"""The call of a model on tensors alone, as every tracer makes it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from compiler.capture.call_form import CallForm, check_leaf
from compiler.capture.python_reads import Reads
from compiler.capture.pytrees import Flattened, Structure, can_take, opened, rebuilt, unchanged
from compiler.capture.trace import Fixed, State, StateKind, Traced, guards_of, narrowed
from compiler.errors import CaptureError

COMPUTED = (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)
"""Leaves of results that are outputs of the graph."""


class TensorCall:
    """A call of a model as a function of its tensor arguments, which returns computed leaves.

    The trees of arguments and results stay here: a plain object, which export does not look into.

    Attributes:
        model: the model.
        arguments: the leaves of the arguments.
        names: of the tensors among them.
        tensors: what to trace with, one for each.
        reads: the Python state of the model that its forward reads.
        leaves: of the result and of the arguments that the model updates, once it has run: computed
            values, constants, and ``Alias`` for what is an argument's own tensor or container.
        out_spec: puts them together again, and names the containers that are updated.
    """

    leaves: list[Any]
    out_spec: Structure

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Prepare the call of ``model`` with these arguments.

        Raises:
            CaptureError: the arguments do not fit the model, or none is a tensor.
        """
        form = CallForm.of(model)
        self.model, self.arguments = model, form.flatten(args, kwargs)
        named = tuple(zip(form.names(self.arguments), self.arguments.leaves, strict=True))
        for name, leaf in named:
            check_leaf(f"argument {name!r}", leaf)
        self.names = tuple(name for name, leaf in named if isinstance(leaf, torch.Tensor))
        if not self.names:
            raise CaptureError(
                "a call must have a tensor argument to be captured",
                found=", ".join(f"{name}={leaf!r}" for name, leaf in named) or "no arguments",
                remedy="pass at least one tensor, such as the token ids",
            )
        tensors = (_plain(x) for _, x in named if isinstance(x, torch.Tensor))
        self.tensors = _in_mode_of(model, list(tensors))
        self.reads = Reads(model)

    def run(self, *tensors: torch.Tensor) -> list[Any]:
        """Run the model on fresh containers, so that the caller's stay as they are.

        What it puts into them follows the result in ``leaves``. Takes the tensors among the leaves
        of the arguments, and returns the computed leaves, in order.

        Raises:
            CaptureError: a result cannot be a leaf, or the model updates an object that cannot be
                updated after a call.
        """
        listed, following = self.arguments.leaves, iter(tensors)
        leaves = [next(following) if isinstance(x, torch.Tensor) else x for x in listed]
        objects: list[Any] = []
        args, kwargs = rebuilt(self.arguments.spec, leaves, objects)
        before = [opened(x) for x in objects]
        flat = Flattened(leaves, objects)
        with self.reads.recording():
            result = self.model(*args, **kwargs)
        flat.add(result)
        updated: list[int] = []
        for i, (x, (old_node, old_children)) in enumerate(zip(objects, before, strict=True)):
            node, children = opened(x)
            if node == old_node and all(map(unchanged, old_children, children)):
                continue
            if not can_take(x):
                raise CaptureError(
                    "the model changes an argument whose class cannot be updated after a call",
                    found=f"{type(x).__module__}.{type(x).__qualname__}",
                    remedy="use lists, dicts or objects with attributes, or return what is new",
                )
            assert node is not None, "an object among the arguments is a container"
            updated.append(i)
            flat.add_node(replace(node, mutable=False), children)
        for leaf in flat.leaves:
            check_leaf("a result of the model", leaf)
        self.leaves = flat.leaves
        self.out_spec = Structure(tuple(flat.nodes), tuple(updated))
        return [x for x in flat.leaves if isinstance(x, COMPUTED)]

    def traced(self, trace: Traced) -> Traced:
        """Return the trace of ``run`` with all leaves of the model's arguments and results.

        Raises:
            CaptureError: the forward changed Python state that it read.
        """
        self.reads.settle()
        placeholders, outputs = iter(trace.arguments), iter(trace.results)
        arguments = tuple(
            next(placeholders) if isinstance(x, torch.Tensor) else Fixed(x)
            for x in self.arguments.leaves
        )
        in_caches = (arguments[i] for i in self.arguments.cached)
        guards = guards_of(trace)
        return replace(
            trace,
            arguments=arguments,
            cached=frozenset(x for x in in_caches if isinstance(x, str)),
            results=tuple(
                next(outputs) if isinstance(x, COMPUTED) else Fixed(x) for x in self.leaves
            ),
            out_spec=self.out_spec,
            ranges=narrowed(trace, guards),
            guards=guards,
            reads=self.reads,
        )


class OnTensors(nn.Module):
    """A call as the module that torch.export traces."""

    def __init__(self, call: TensorCall) -> None:
        super().__init__()
        self.model, self.call = call.model, call
        self.training = call.model.training

    def forward(self, *tensors: torch.Tensor) -> list[Any]:
        """Run the call."""
        return self.call.run(*tensors)


def tensors_of(model: nn.Module) -> Iterator[tuple[dict[str, Any], str, State]]:
    """Yield all parameters, then all buffers: the table, the name in it, and the tensor."""
    for table_name in ("_parameters", "_buffers"):
        for path, module in model.named_modules():
            table: dict[str, Any] = vars(module)[table_name]
            for name, tensor in table.items():
                kind = StateKind.PARAMETER
                if table_name == "_buffers":
                    is_saved = name not in module._non_persistent_buffers_set
                    kind = StateKind.BUFFER if is_saved else StateKind.TRANSIENT
                if tensor is not None:
                    yield table, name, State(kind, f"{path}.{name}" if path else name, tensor)


@contextmanager
def swapped(tensors: Iterable[tuple[dict[str, Any], str, Any]]) -> Iterator[None]:
    """Hold other ``tensors`` in the tables of modules: table, name in it, tensor."""
    with ExitStack() as stack:
        for table, name, tensor in tensors:
            stack.callback(table.__setitem__, name, table[name])
            table[name] = tensor
        yield


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor like this one, contiguous and not a view: export reads its type alone.

    The runtime passes contiguous tensors, too, so that one graph serves all strides.
    """
    if tensor.is_contiguous() and not tensor._is_view():
        return tensor
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _in_mode_of(model: nn.Module, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return ``tensors`` as fake ones if the model's own are, since the two kinds do not mix."""
    own = (t for t in (*model.parameters(), *model.buffers()) if isinstance(t, FakeTensor))
    if (fake := next(own, None)) is None:
        return tensors
    mode = fake.fake_mode
    return [t if isinstance(t, FakeTensor) else mode.from_tensor(t) for t in tensors]
