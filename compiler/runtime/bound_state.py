"""What a graph reads besides the arguments of a call: the model's state, and constants.

Run as it is, a graph takes all of it as inputs. A compiler gets a graph that holds it as a module
holds buffers: torch.compile checks those by the versions of a module's dictionaries, and inputs one
by one, at every call.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.distributed.tensor import DTensor

from compiler.ir import access


def compilers_read_modules() -> bool:
    """Whether torch.compile reads the tensors of modules at every call, as it does by default.

    Up to torch 2.12 it may be told to take them for constants; then they must not be replaced.
    """
    with warnings.catch_warnings():  # since 2.13, reading what has no effect any more warns
        warnings.simplefilter("ignore", FutureWarning)
        return bool(getattr(torch._dynamo.config, "inline_inbuilt_nn_modules", True))


class BoundState:
    """Tensors of one model by the names of placeholders.

    Attributes:
        names: the placeholders.
        slots: per parameter or buffer, the table that holds it and its key there.
    """

    def __init__(
        self, model: nn.Module, state: Mapping[str, str], constants: Mapping[str, Any]
    ) -> None:
        """Looks the model's modules up, once.

        Args:
            model: holds the state.
            state: placeholder -> key of a parameter or buffer.
            constants: placeholder -> tensor that the model's code made.
        """
        self.names = (*state, *constants)
        self.slots = tuple(slot(model, key) for key in state.values())
        self._constants = list(constants.values())
        self.refresh()

    def refresh(self) -> None:
        """Read the model's tensors again: one of them may have been replaced."""
        now = [owner[key] for owner, key in self.slots]
        self._dtensors = [(i, x) for i, x in enumerate(now) if isinstance(x, DTensor)]
        self._tensors = now + self._constants
        self._parts: list[torch.Tensor] = []

    def tensors(self) -> list[Any]:
        """The tensors of the last ``refresh``, in the order of ``names``; of DTensors, local parts.

        The same list as before if nothing was replaced since. Not to be changed.
        """
        if self._dtensors:  # a DTensor may get another local tensor, and stays the same object
            parts = [x._local_tensor for _, x in self._dtensors]
            if len(parts) != len(self._parts) or not all(map(operator.is_, parts, self._parts)):
                self._parts, self._tensors = parts, list(self._tensors)
                for (i, _), part in zip(self._dtensors, parts, strict=True):
                    self._tensors[i] = part
        return self._tensors


class GraphWithState(nn.Module):
    """A graph that holds tensors in the place of some of its inputs; called with the others."""

    def __init__(self, module: fx.GraphModule, names: tuple[str, ...]) -> None:
        """Holds nothing yet.

        Args:
            module: not changed.
            names: the placeholders whose tensors are held.
        """
        super().__init__()
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        self._attributes = {name: f"held_{i}" for i, name in enumerate(names)}
        for node in access.node_of(module.graph, "placeholder"):
            attribute = self._attributes.get(str(node.target))
            copies[node] = graph.get_attr(attribute) if attribute else graph.node_copy(node)
        graph.output(graph.graph_copy(module.graph, copies))
        own = access.node_of(module.graph, "get_attr")
        attributes: dict[str, Any] = {
            str(n.target): operator.attrgetter(str(n.target))(module) for n in own
        }
        attributes |= dict.fromkeys(self._attributes.values(), torch.empty(0))
        self.module = fx.GraphModule(attributes, graph)
        self._last: list[Any] = []

    def hold(self, tensors: list[Any]) -> None:
        """Takes tensors in the order of the names; nothing changes if it is the list held."""
        if tensors is self._last:
            return
        buffers = self.module._buffers
        for attribute, tensor in zip(self._attributes.values(), tensors, strict=True):
            if buffers[attribute] is not tensor:
                buffers[attribute] = tensor
        self._last = tensors

    def forward(self, *arguments: torch.Tensor) -> Any:
        """What the graph returns."""
        return self.module(*arguments)


def slot(model: nn.Module, key: str) -> tuple[dict[str, Any], str]:
    """The dictionary that holds the parameter or buffer at ``key``, and its name there.

    Modules are looked up once; what they hold is read at every call.
    """
    path, _, name = key.rpartition(".")
    owner: Any = model
    for part in path.split(".") if path else ():
        owner = getattr(owner, part)
    for table in (owner._parameters, owner._buffers) if isinstance(owner, nn.Module) else ():
        if name in table:
            return table, name
    return vars(owner), name
