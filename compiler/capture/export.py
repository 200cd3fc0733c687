"""Trace a model with torch.export: one functional graph whose inputs include all state.

The wrapper through which the model is called leaves no trace in names and layer paths.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from operator import attrgetter, is_
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor import DTensor
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, InputSpec, OutputKind

from compiler.capture.export_errors import capture_error
from compiler.capture.model_call import OnTensors, TensorCall, swapped, tensors_of
from compiler.capture.pytrees import whole
from compiler.capture.trace import (
    CHECKS,
    Fixed,
    State,
    StateKind,
    Traced,
    guards_of,
    size_range,
    unused,
)
from compiler.errors import CaptureError
from compiler.ir import access
from compiler.ir.graph_copy import GraphCopy
from compiler.ir.rules.opaque import op_called
from compiler.ir.torch_logging import FAKE_TENSORS, unlogged, unprinted


def trace(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Traced:
    """Trace ``model`` as it runs on this rank; sizes of two and more are symbolic.

    Raises:
        CaptureError: export failed; names the op and the line of the model.
    """
    call = TensorCall(model, args, kwargs)
    auto = torch.export.Dim.AUTO
    dims = tuple({d: auto for d, size in enumerate(t.shape) if size >= 2} for t in call.tensors)
    with _explained(), localised(model), own_containers(model), unprinted():
        warnings.filterwarnings("error", message=".*assigned during export")
        program = torch.export.export(
            OnTensors(call), tuple(call.tensors), dynamic_shapes={"tensors": dims}, strict=False
        )
        program = program.run_decompositions({})
    return call.traced(lift(program, prefix="model.", names=call.names))


def trace_program(program: ExportedProgram) -> Traced:
    """Trace a model that its user exported.

    Raises:
        CaptureError: the program cannot be made functional.
    """
    lifted = lift(functional_program(program))
    return replace(lifted, guards=guards_of(lifted))


def functional_program(program: ExportedProgram) -> ExportedProgram:
    """Return the program in functional ATen ops.

    Raises:
        CaptureError: it cannot be made so.
    """
    with _explained():
        return program.run_decompositions({})  # type: ignore[no-any-return]


@contextmanager
def _explained() -> Iterator[None]:
    """Run torch.export without warnings and gradients; its errors become those of a user."""
    try:
        with torch.no_grad(), warnings.catch_warnings(action="ignore"), unlogged(FAKE_TENSORS):
            yield
    except Exception as error:
        raise capture_error(error) from error


def localised(model: nn.Module) -> AbstractContextManager[None]:
    """Hold the local tensor of every DTensor among the model's parameters and buffers."""

    def local(tensor: DTensor) -> torch.Tensor:
        shard = tensor.to_local().detach()
        return nn.Parameter(shard, False) if isinstance(tensor, nn.Parameter) else shard

    return swapped(
        (table, name, local(state.tensor))
        for table, name, state in tensors_of(model)
        if isinstance(state.tensor, DTensor)
    )


@contextmanager
def own_containers(model: nn.Module) -> Iterator[None]:
    """Give modules back their lists and dicts, of which torch.export leaves them copies."""
    before = [(vars(m), list(vars(m).items())) for m in model.modules()]
    try:
        yield
    finally:
        for attributes, items in before:
            for key, value in items:
                now = attributes.get(key)
                if now is not value and _is_copy(now, value):
                    attributes[key] = value


def _is_copy(new: Any, old: Any) -> bool:
    """Return whether two containers hold the same objects, at any depth."""
    if not isinstance(old, dict | list | tuple):
        return False
    (own, tree), (others, other_tree) = pytree.tree_flatten(old), pytree.tree_flatten(new)
    return tree == other_tree and all(map(is_, own, others))


# ---- programs and modules as graphs whose inputs are all of their state


def lift(program: ExportedProgram, prefix: str = "", names: Sequence[str] = ()) -> Traced:
    """Return the graph of ``program`` with readable placeholder names, those of state first.

    Args:
        program: functional (after ``run_decompositions``).
        prefix: leading part of all names of modules and tensors, to be dropped.
        names: names for the tensor arguments, in order; the program's own where left out.
    """
    copied = GraphCopy()
    graph, copies = copied.target, copied.values
    state: dict[str, State] = {}
    arguments: list[str | Fixed] = []
    inputs: dict[tuple[bool, str], str] = {}  # whether of an argument, name in the program
    remaining = iter(names)
    nodes = access.node_of(program.graph, "placeholder")
    _refuse_branches(program.graph)
    for spec, node in zip(program.graph_signature.input_specs, nodes, strict=True):
        if isinstance(spec.arg, ConstantArgument) and not node.users:
            arguments.append(Fixed(spec.arg.value))
            continue
        taken = (*state, *(x for x in arguments if isinstance(x, str)))
        if (tensor_state := _state(program, spec, prefix)) is None:
            name = unused(next(remaining, node.name), taken)
            arguments.append(name)
        else:
            name = tensor_state.unused_name(taken)
            state[name] = tensor_state
        copies[node] = graph.placeholder(name)
        copies[node].meta = _meta(node, prefix)
        of_argument = tensor_state is None
        inputs[of_argument, node.name if of_argument else str(spec.target)] = name
    for node in program.graph.nodes:
        if node.op not in ("placeholder", "output") and node.target not in CHECKS:
            copied.add(node).meta = _meta(node, prefix)
    outputs: list[fx.Node] = []
    mutations: dict[int, str] = {}
    results: list[int | Fixed] = []
    listed = access.returned(program.graph)
    assert isinstance(listed, tuple | list), "an exported program returns a flat list"
    for output, node in zip(program.graph_signature.output_specs, listed, strict=True):
        if not isinstance(node, fx.Node):
            results.append(Fixed(node))
            continue
        if output.kind is OutputKind.USER_OUTPUT:
            results.append(len(outputs))
        else:
            of_argument = output.kind is OutputKind.USER_INPUT_MUTATION
            mutations[len(outputs)] = inputs[of_argument, str(output.target)]
        outputs.append(copies[node])
    graph.output(tuple(outputs))
    assert program.call_spec.out_spec is not None, "an exported program has a result tree"
    bounds = program.range_constraints.items()
    return Traced(
        graph=graph,
        state=state,
        arguments=tuple(arguments),
        mutations=mutations,
        results=tuple(results),
        out_spec=whole(program.call_spec.out_spec),
        ranges={str(symbol): size_range(x) for symbol, x in bounds if symbol.is_integer},
    )


def _refuse_branches(graph: fx.Graph) -> None:
    """Refuse ops that run other graphs: what they do has no meaning here."""
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


def _meta(node: fx.Node, prefix: str) -> dict[str, Any]:
    """Return the node's facts, with module paths that start below ``prefix``."""
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
    """Return a traced value; symbolic sizes that can only be one number are that number."""
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
    """Return whether a function is one of Python's operators, or torch's beside them."""
    module, name = (str(getattr(target, key, "")) for key in ("__module__", "__name__"))
    return module == "_operator" or (module == "torch" and name.startswith("sym_"))


def is_spmd(module: fx.GraphModule) -> bool:
    """Return whether a graph is functional, of ops alone, and typed: nothing to export."""
    for node in module.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        is_op = schema is not None or _computes_sizes(node.target) or _is_functionalized(node)
        if node.op in ("call_module", "call_method") or (node.op == "call_function" and not is_op):
            return False
        if schema is not None and schema.is_mutable:
            return False
        if access.has_result(node) and "val" not in node.meta:
            return False
    return type(module.graph._codegen) is fx.graph.CodeGen


def _is_functionalized(node: fx.Node) -> bool:
    """Return whether a node calls an op that writes, made functional by AOTAutograd."""
    return op_called(node.target, next(iter(node.args), None)) is not None


def lift_module(module: fx.GraphModule) -> Traced:
    """Return a functional graph with its attributes as inputs, its placeholders unchanged."""
    parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    persistent = set(module.state_dict(keep_vars=True))
    copied = GraphCopy()
    graph, copies = copied.target, copied.values
    state: dict[str, State] = {}
    lifted: dict[str, fx.Node] = {}
    arguments = [str(n.target) for n in access.node_of(module.graph, "placeholder")]
    for node in access.node_of(module.graph, "get_attr"):
        key = str(node.target)
        if key not in lifted:
            kind = StateKind.PARAMETER if key in parameters else StateKind.CONSTANT
            if key in buffers:
                kind = StateKind.BUFFER if key in persistent else StateKind.TRANSIENT
            tensor_state = State(kind, key, attrgetter(key)(module))
            name = tensor_state.unused_name((*state, *arguments))
            state[name], lifted[key] = tensor_state, graph.placeholder(name)
            lifted[key].meta = dict(node.meta)
        copies[node] = lifted[key]
    for node in module.graph.nodes:
        if node.op not in ("get_attr", "output"):
            copied.add(node)
    leaves, out_spec = pytree.tree_flatten(access.returned(module.graph))
    values = [leaf for leaf in leaves if isinstance(leaf, fx.Node)]
    graph.output(tuple(copies[node] for node in values))
    count = iter(range(len(values)))
    return Traced(
        graph=graph,
        state=state,
        arguments=tuple(arguments),
        results=tuple(next(count) if isinstance(leaf, fx.Node) else Fixed(leaf) for leaf in leaves),
        out_spec=whole(out_spec),
    )
