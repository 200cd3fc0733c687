"""An exported program as a graph whose inputs are all of its state and its tensor arguments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from operator import attrgetter
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, InputSpec, OutputKind

from compiler.errors import CaptureError
from compiler.ir import access
from compiler.ir.graph_copy import GraphCopy

CHECKS = {torch.ops.aten._assert_tensor_metadata.default}
"""Ops that only repeat what is already known of their operand when the graph is run."""


class StateKind(StrEnum):
    """What a lifted tensor is to the model."""

    PARAMETER = "parameter"
    BUFFER = "buffer"
    TRANSIENT = "non-persistent buffer"
    CONSTANT = "constant"


@dataclass(frozen=True)
class State:
    """A tensor of the model that became an input of the graph.

    Attributes:
        kind: what it is to the model.
        key: its dotted name in the model; for parameters and persistent buffers, the key in its
            state_dict.
        tensor: the tensor; the local shard where the model holds a DTensor.
    """

    kind: StateKind
    key: str
    tensor: torch.Tensor


@dataclass(frozen=True)
class Fixed:
    """A leaf of arguments or results that is not a tensor: the value the graph was traced with."""

    value: Any


@dataclass(frozen=True)
class LiftedGraph:
    """A functional graph without attributes.

    Attributes:
        graph: placeholders of state come first.
        state: placeholder -> tensor of the model.
        arguments: per argument, its placeholder or the constant it was traced with.
        mutations: index of a graph output -> placeholder whose tensor it is written back to.
        results: per result of the model, the index of a graph output, or a constant.
        cached: placeholders of arguments that are parts of caches.
    """

    graph: fx.Graph
    state: Mapping[str, State]
    arguments: tuple[str | Fixed, ...]
    mutations: Mapping[int, str]
    results: tuple[int | Fixed, ...]
    cached: frozenset[str] = frozenset()


def lift(program: ExportedProgram, prefix: str = "", names: Sequence[str] = ()) -> LiftedGraph:
    """``program`` with readable placeholder names.

    Args:
        program: functional (after ``run_decompositions``).
        prefix: leading part of all names of modules and tensors, to be dropped.
        names: names for the tensor arguments, in order; the program's own where left out.
    """
    copied = GraphCopy()
    graph, copies = copied.target, copied.values
    state: dict[str, State] = {}
    arguments: list[str | Fixed] = []
    named: dict[str, str] = {}
    placeholders: dict[str, str] = {}
    remaining = iter(names)
    nodes = access.node_of(program.graph, "placeholder")
    _refuse_branches(program.graph)
    for spec, node in zip(program.graph_signature.input_specs, nodes, strict=True):
        if isinstance(spec.arg, ConstantArgument) and not node.users:
            arguments.append(Fixed(spec.arg.value))
            continue
        tensor_state = _state(program, spec, prefix)
        name = (
            next(remaining, node.name) if tensor_state is None else placeholder_name(tensor_state)
        )
        copy = graph.placeholder(unused(name, placeholders.values()))
        copy.meta = _meta(node, prefix)
        copies[node] = copy
        placeholders[node.name] = str(copy.target)
        if tensor_state is None:
            arguments.append(str(copy.target))
        else:
            state[str(copy.target)] = tensor_state
            named[tensor_state.key] = str(copy.target)
    for node in program.graph.nodes:
        if node.op in ("placeholder", "output") or node.target in CHECKS:
            continue
        copied.add(node).meta = _meta(node, prefix)
    outputs: list[fx.Node] = []
    mutations: dict[int, str] = {}
    results: list[int | Fixed] = []
    listed = access.returned(program.graph)
    assert isinstance(listed, tuple | list), "an exported program returns a flat list"
    for spec, node in zip(program.graph_signature.output_specs, listed, strict=True):
        if not isinstance(node, fx.Node):
            results.append(Fixed(node))
            continue
        if spec.kind is OutputKind.USER_OUTPUT:
            results.append(len(outputs))
        elif spec.kind in (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION):
            mutations[len(outputs)] = named[str(spec.target).removeprefix(prefix)]
        else:
            assert spec.kind is OutputKind.USER_INPUT_MUTATION, f"output kind {spec.kind}"
            mutations[len(outputs)] = placeholders[str(spec.target)]
        outputs.append(copies[node])
    graph.output(tuple(outputs))
    return LiftedGraph(graph, state, tuple(arguments), mutations, tuple(results))


def _refuse_branches(graph: fx.Graph) -> None:
    """Raise CaptureError for an op that runs other graphs: what they do has no meaning here."""
    for node in access.node_of(graph, "get_attr"):
        op = next(iter(node.users), node)
        raise CaptureError(
            "the model takes a branch or runs a loop inside the graph",
            where=access.source_line(op),
            found=f"{op.target} of {node.target}",
            remedy="compute it with tensor ops (torch.where, masked_fill), or decide before the "
            "call",
        )


def _state(program: ExportedProgram, spec: InputSpec, prefix: str) -> State | None:
    target = str(spec.target)
    key = target.removeprefix(prefix)
    match spec.kind:
        case InputKind.USER_INPUT:
            return None
        case InputKind.PARAMETER:
            return State(StateKind.PARAMETER, key, program.state_dict[target])
        case InputKind.BUFFER if spec.persistent:
            return State(StateKind.BUFFER, key, program.state_dict[target])
        case InputKind.BUFFER:
            return State(StateKind.TRANSIENT, key, program.constants[target])
        case InputKind.CONSTANT_TENSOR:
            return State(StateKind.CONSTANT, key, program.constants[target])
    raise CaptureError(
        f"the model reads {target!r}, which is not a tensor",
        found=f"an input of kind {spec.kind.name}",
        remedy="keep opaque objects out of forward",
    )


def placeholder_name(state: State) -> str:
    """The name of a state tensor's placeholder."""
    letter = {StateKind.PARAMETER: "p", StateKind.CONSTANT: "c"}.get(state.kind, "b")
    return f"{letter}_{''.join(c if c.isalnum() else '_' for c in state.key)}"


def unused(name: str, taken: Iterable[str]) -> str:
    """``name``, numbered if it is among ``taken``."""
    names, unused_name, count = set(taken), name, 0
    while unused_name in names:
        count += 1
        unused_name = f"{name}_{count}"
    return unused_name


def _meta(node: fx.Node, prefix: str) -> dict[str, Any]:
    """The node's facts, with module paths that start below ``prefix``."""
    meta = dict(node.meta)
    meta["val"] = pytree.tree_map(_settled, meta.get("val"))
    stack = meta.get("nn_module_stack")
    if stack and prefix:
        wrapper = prefix.rstrip(".")
        meta["nn_module_stack"] = {
            key: ("" if path == wrapper else path.removeprefix(prefix), *rest)
            for key, (path, *rest) in stack.items()
            if path
        }
    return meta


def _settled(value: Any) -> Any:
    """A traced value whose symbolic sizes that can only be one number are that number."""
    if isinstance(value, torch.SymInt):
        return int(value) if value.node.expr.is_number else value
    if not isinstance(value, FakeTensor):
        return value
    sizes, strides = value.shape, value.stride()
    if all(isinstance(s, int) or not s.node.expr.is_number for s in (*sizes, *strides)):
        return value
    with value.fake_mode:
        return torch.empty_strided(
            [_settled(size) for size in sizes],
            [_settled(stride) for stride in strides],
            dtype=value.dtype,
            device=value.device,
        )


def _computes_sizes(target: object) -> bool:
    """Whether a function is one of Python's operators, or of those that torch has beside them."""
    module, name = (str(getattr(target, key, "")) for key in ("__module__", "__name__"))
    return module == "_operator" or (module == "torch" and name.startswith("sym_"))


def is_spmd(module: fx.GraphModule) -> bool:
    """Whether the graph is already functional, of ops alone, and typed: nothing to export."""
    for node in module.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        is_op = schema is not None or _computes_sizes(node.target)
        if node.op in ("call_module", "call_method") or (node.op == "call_function" and not is_op):
            return False
        if schema is not None and schema.is_mutable:
            return False
        if access.has_result(node) and "val" not in node.meta:
            return False
    return type(module.graph._codegen) is fx.graph.CodeGen


def lift_module(module: fx.GraphModule) -> LiftedGraph:
    """A functional graph with its attributes as inputs, placeholders of arguments unchanged."""
    parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    persistent = set(module.state_dict(keep_vars=True))
    copied = GraphCopy()
    graph, copies = copied.target, copied.values
    state: dict[str, State] = {}
    lifted: dict[str, fx.Node] = {}
    arguments = [str(n.target) for n in access.node_of(module.graph, "placeholder")]
    for node in access.node_of(module.graph, "get_attr"):
        key = str(node.target)
        if key in lifted:
            copies[node] = lifted[key]
            continue
        kind = StateKind.PARAMETER if key in parameters else StateKind.CONSTANT
        if key in buffers:
            kind = StateKind.BUFFER if key in persistent else StateKind.TRANSIENT
        tensor_state = State(kind, key, attrgetter(key)(module))
        copy = graph.placeholder(unused(placeholder_name(tensor_state), {*state, *arguments}))
        copy.meta = dict(node.meta)
        state[str(copy.target)] = tensor_state
        copies[node] = lifted[key] = copy
    for node in module.graph.nodes:
        if node.op not in ("get_attr", "output"):
            copied.add(node)
    leaves = pytree.tree_leaves(access.returned(module.graph))
    values = [leaf for leaf in leaves if isinstance(leaf, fx.Node)]
    graph.output(tuple(copies[node] for node in values))
    count = iter(range(len(values)))
    return LiftedGraph(
        graph,
        state,
        tuple(arguments),
        {},
        tuple(next(count) if isinstance(leaf, fx.Node) else Fixed(leaf) for leaf in leaves),
    )
