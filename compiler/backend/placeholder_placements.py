"""What ranks hold of the inputs of a graph behind AOTAutograd.

    declared by an engine as its layers say; the bytes are compared where they say Replicate
    DTensor              its placements; the bytes are compared where they say Replicate
    state of the model   compared: parameters, buffers, attributes
    integers             compared: token ids, positions, masks
    written by the graph Varying: caches
    other tensors        Varying: activations that are equal once need not be equal at the next call
    sizes                the same on all ranks, as their collectives ask of them
    other numbers        Varying

What is compared is so when the graph is compiled, by digest, as ``optimize_allreduce`` does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy
import torch
from torch import fx
from torch._functorch._aot_autograd import descriptors
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor import DTensor

from compiler.backend.aot_graphs import functional
from compiler.capture.declared_placements import dims_of
from compiler.capture.export import lift_module
from compiler.capture.trace import Cut, State, StateKind, Traced, size_range
from compiler.ir import access
from compiler.ir.placement import Placement, Replicate, Varying


@dataclass(frozen=True)
class DynamoInput:
    """A tensor or number that Dynamo passes to the graph.

    Attributes:
        name: as Dynamo calls it.
        value: at the call that is compiled.
        is_state: it is part of a module.
        placement: what its owner says that ranks hold; None: it says nothing.
    """

    name: str
    value: Any
    is_state: bool
    placement: Placement | None = None


Declare = Callable[[fx.Node, Any], Placement | None]
"""Returns what the owner of an input, a placeholder of Dynamo's and its value, says of it."""


def dynamo_inputs(
    gm: fx.GraphModule, example_inputs: Sequence[Any], declare: Declare = lambda *_: None
) -> list[DynamoInput]:
    """The inputs of a graph that Dynamo made, which ``example_inputs`` are the values of."""
    nodes = access.node_of(gm.graph, "placeholder")
    return [
        DynamoInput(node.name, value, _is_state(node, value), declare(node, value))
        for node, value in zip(nodes, example_inputs, strict=True)
    ]


def _is_state(node: fx.Node, value: Any) -> bool:
    if isinstance(value, torch.nn.Parameter):
        return True
    source = getattr(node.meta.get("grapharg"), "source", None)
    return "NN_MODULE" in getattr(getattr(source, "guard_source", None), "name", "")


def source_of(
    gm: fx.GraphModule, inputs: Sequence[DynamoInput]
) -> tuple[Traced, dict[str, Placement], tuple[str, ...]]:
    """The functional form of a graph behind AOTAutograd, ready for capture.

    Returns:
        The form; placements of inputs that are not asked about; placeholders that the last outputs
        are written to.

    Raises:
        CaptureError: the graph has no functional form.
    """
    module, written = functional(gm)
    lifted = lift_module(module)
    state = {n: replace(s, kind=StateKind.CONSTANT) for n, s in lifted.state.items()}
    cut, placements = dict[str, tuple[tuple[str, Placement], ...]](), dict[str, Placement]()
    nodes = access.node_of(gm.graph, "placeholder")
    sizes = _sizes(nodes)
    for node in nodes:
        name, value = str(node.target), access.value(node)
        if isinstance(value, torch.SymInt):
            is_size = value.node.expr.free_symbols <= sizes
            placements[name] = Replicate() if is_size else Varying()
        elif isinstance(value, torch.Tensor):
            description = node.meta.get("desc")
            declared = _declared(description, inputs)
            compared = _compared(description, inputs) if name not in written else None
            if compared is not None:
                state[name], dims = compared
                cut |= dims
            if declared is not None or compared is None:
                placements[name] = declared or Varying()
    traced = replace(lifted, state=state, ranges=_ranges(nodes), cut=cut)
    return traced, placements, written


def _declared(description: object, inputs: Sequence[DynamoInput]) -> Placement | None:
    """What the owner of the tensor behind a placeholder says of it."""
    if not isinstance(description, descriptors.PlainAOTInput):
        return None
    return inputs[description.idx].placement


def _compared(description: object, inputs: Sequence[DynamoInput]) -> tuple[State, Cut] | None:
    """The tensor behind a placeholder, if ranks compare it, and how a DTensor cuts it."""
    if isinstance(description, descriptors.SubclassGetAttrAOTInput):
        base, attribute = description.base, description.attr
        whole = inputs[base.idx] if isinstance(base, descriptors.PlainAOTInput) else None
        if whole is None or not isinstance(whole.value, DTensor):
            return None
        key = f"{whole.name}.{attribute}"
        local = getattr(whole.value, attribute)
        return State(StateKind.BUFFER, key, local.detach()), {key: dims_of(whole.value)}
    if not isinstance(description, descriptors.PlainAOTInput):
        return None
    one = inputs[description.idx]
    if not isinstance(one.value, torch.Tensor) or isinstance(one.value, FakeTensor):
        return None
    if not one.is_state and (one.value.is_floating_point() or one.value.is_complex()):
        return None
    kind = StateKind.PARAMETER if one.is_state else StateKind.BUFFER
    return State(kind, one.name, one.value.detach()), {}


def _sizes(nodes: Collection[fx.Node]) -> set[sympy.Symbol]:
    """Symbols that the sizes of input tensors are made of."""
    shapes = (access.shape(n) for n in nodes if access.is_tensor(n))
    symbolic = (s for shape in shapes for s in shape if isinstance(s, torch.SymInt))
    return {symbol for size in symbolic for symbol in size.node.expr.free_symbols}


def _ranges(nodes: Collection[fx.Node]) -> dict[str, tuple[int, int | None]]:
    """Symbol of a size -> least and greatest value, as Dynamo guards them."""
    ranges: dict[str, tuple[int, int | None]] = {}
    for node in nodes:
        value = access.value(node)
        sizes = access.shape(node) if isinstance(value, torch.Tensor) else (value,)
        for size in sizes:
            if isinstance(size, torch.SymInt):
                bounds = size.node.shape_env.var_to_range
                for symbol in size.node.expr.free_symbols:
                    ranges[str(symbol)] = size_range(bounds[symbol])
    return ranges
