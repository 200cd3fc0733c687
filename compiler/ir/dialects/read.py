"""Read ops of others as what they are declared to do: collectives, and the ops they stand for.

``read`` puts in their place the nodes of the function that each stands for, traced on tensors
without data. ``auto_functionalized`` is read through: tensors that the op writes to are results.
What was read is noted in ``meta[READ]``, so that ``compiler.ir.dialects.write`` can put it back.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx
from torch._higher_order_ops.auto_functionalize import read_view_information_from_args
from torch._ops import OpOverload
from torch.fx.experimental.proxy_tensor import make_fx

from compiler.errors import CommPlanError, GraphError
from compiler.ir import access
from compiler.ir.collectives import WAIT, Kind, c10d
from compiler.ir.dialects.registry import (
    CollectiveOp,
    ComposedOp,
    Entry,
    called,
    entry_of,
    load_installed,
)
from compiler.ir.graph_copy import GraphCopy
from compiler.ir.rules import Call, opaque
from compiler.ir.rules.meaning import shape_key, size_key
from compiler.ir.rules.opaque import OpaqueOp
from compiler.ir.torch_logging import FAKE_TENSORS, unlogged

READ = "read_from_dialect"
"""Key in the ``meta`` of a node that was read from an op of others: a ``Piece``."""


@dataclass(frozen=True, eq=False)
class Reading:
    """One call of an op of others, and what it was read as.

    Attributes:
        node: the call, in the graph that was read.
        op: the op that it calls.
        entry: what that is declared to be.
        traced: the function it stands for; its placeholders are ``operands`` in order.
        operands: the values that the call reads, in the graph that was read.
    """

    node: fx.Node
    op: OpOverload
    entry: CollectiveOp | ComposedOp
    traced: fx.Graph = field(repr=False)
    operands: tuple[fx.Node, ...]


@dataclass(frozen=True)
class Piece:
    """A node of what a call was read as."""

    reading: Reading
    original: fx.Node


def read(graph: fx.Graph, ranks_of: Callable[[str], int], world: str = "") -> fx.Graph:
    """Return ``graph`` with the ops of others that are declared written out; itself without any.

    Args:
        graph: a graph with ``meta["val"]``. Not changed.
        ranks_of: name of a group -> how many ranks each of its groups has.
        world: the group of collectives that do not name theirs; empty: it is named as the op.

    Raises:
        GraphError: what an op is declared to do does not give what the graph states.
        MeshError: a group that does not resolve.
    """
    if all(_is_own(node) for node in graph.nodes):
        return graph
    load_installed()
    if all(isinstance(entry_of(node), OpaqueOp | None) for node in graph.nodes):
        return graph
    copy, cache = GraphCopy(), dict[Any, fx.Graph]()
    several: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        parts = [x for x in node.all_input_nodes if x in several]
        entry = entry_of(node)
        if parts:
            index = access.projection(node)
            if index is None:
                raise GraphError(
                    f"%{node.name} reads the results of {called(parts[0])} otherwise than one by "
                    "one",
                    where=access.place(node),
                    remedy="read them by getitem",
                )
            result = several[parts[0]][index]
        elif isinstance(entry, CollectiveOp | ComposedOp):
            result = _written_out(node, entry, copy, cache, ranks_of, world)
        elif node.target is WAIT and copy.values[node.all_input_nodes[0]].target is WAIT:
            result = copy.values[node.all_input_nodes[0]]
        else:
            copy.add(node)
            continue
        if isinstance(result, fx.Node):
            copy.values[node] = result
        else:
            several[node] = result
    return copy.target


def readings_of(graph: fx.Graph) -> tuple[Reading, ...]:
    """Return the calls of which ``graph`` has pieces, in order."""
    pieces = (node.meta.get(READ) for node in graph.nodes)
    return tuple(dict.fromkeys(piece.reading for piece in pieces if piece is not None))


def _is_own(node: fx.Node) -> bool:
    """Return whether a node is nothing that anybody could have declared."""
    op = called(node)
    return op is None or op.namespace in ("aten", "prims", "commplan")


def _written_out(
    node: fx.Node,
    entry: CollectiveOp | ComposedOp,
    copy: GraphCopy,
    cache: dict[Any, fx.Graph],
    ranks_of: Callable[[str], int],
    world: str,
) -> Any:
    """Write what ``node`` stands for; return its results as they are nested in ``node``."""
    operands = tuple(node.all_input_nodes)
    examples = [access.value(x) for x in operands]
    strides = [tuple(map(size_key, x.stride())) for x in examples if isinstance(x, torch.Tensor)]
    key = Call.of(node), repr(strides), tuple(map(str, operands)) if _repeats(node) else ()
    if key not in cache:
        cache[key] = _traced(node, entry, operands, ranks_of, world)
    traced = cache[key]
    _check_results(node, access.returned(traced))
    op = called(node)
    assert op is not None, f"%{node.name} calls no op"
    reading = Reading(node, op, entry, traced, operands)
    values = dict(
        zip(access.node_of(traced, "placeholder"), (copy.values[x] for x in operands), strict=True)
    )
    for original in traced.nodes:
        if original.op == "call_function":
            written = values[original] = copy.target.node_copy(original, values.__getitem__)
            written.meta = {**node.meta, "val": original.meta.get("val")}
            written.meta[READ] = Piece(reading, original)
    return fx.node.map_arg(access.returned(traced), values.__getitem__)


def _repeats(node: fx.Node) -> bool:
    return len(access.operands(node)) != len(node.all_input_nodes)


def _traced(
    node: fx.Node,
    entry: CollectiveOp | ComposedOp,
    operands: Sequence[fx.Node],
    ranks_of: Callable[[str], int],
    world: str,
) -> fx.Graph:
    """Return the function that ``node`` stands for as a graph of ``operands``."""
    op = called(node)
    assert op is not None, f"%{node.name} calls no op"
    function = function_of(op, entry, ranks_of, world)

    def of_operands(*values: Any) -> Any:
        value_of = dict(zip(operands, values, strict=True))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), value_of.__getitem__)
        if node.target is op:
            return function(**dict(zip(_names(op), args, strict=False)), **kwargs)
        return _functional(op, function, dict(kwargs))

    try:
        with torch.no_grad(), unlogged(FAKE_TENSORS):
            examples = [access.value(x) for x in operands]
            graph: fx.Graph = make_fx(torch.func.functionalize(of_operands))(*examples).graph
    except CommPlanError:
        raise
    except Exception as error:
        raise GraphError(
            f"what {op} is declared to do cannot be traced",
            where=access.place(node),
            found=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}",
            remedy="correct its declaration, which check_op compares with its kernel",
        ) from error
    for copied in graph.find_nodes(op="call_function", target=torch.ops.aten.clone.default):
        if copied.args[0].op == "placeholder":  # written to, outside of functional graphs
            copied.replace_all_uses_with(copied.args[0])
    for wait in graph.find_nodes(op="call_function", target=WAIT):
        for user in [x for x in wait.args[0].users if x is not wait]:  # sizes of a result
            user.replace_input_with(wait.args[0], wait)
            wait.append(user)
    graph.eliminate_dead_code()
    return graph


def _functional(op: OpOverload, function: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
    """Return what ``auto_functionalized`` does: results, then tensors as the op leaves them."""
    written = written_by(op)
    names, bases = [a.name for a in written], kwargs.pop("_all_bases", None)
    if bases is None:
        tensors = {n: pytree.tree_map(_cloned, kwargs[n]) for n in names}
        after: Any = list(tensors.values())
    else:
        after = [_cloned(x) for x in bases]

        def regenerated(view: Any) -> Any:
            return None if view is None else view.regenerate_view(after)

        types: list[Any] = [a.type for a in written]
        views = read_view_information_from_args(names, types, kwargs, after)
        tensors = {name: pytree.tree_map(regenerated, view) for name, view in views.items()}
    results = function(**{**kwargs, **tensors})
    returned = op._schema.returns
    listed = tuple(results) if len(returned) > 1 else (results,)
    return (*listed, *after)


def written_by(op: OpOverload) -> list[Any]:
    """Return the arguments that an op writes to."""
    listed = op._schema.arguments
    return [a for a in listed if a.alias_info is not None and a.alias_info.is_write]


def _cloned(x: Any) -> Any:
    return x.clone() if isinstance(x, torch.Tensor) else x


def _names(op: OpOverload) -> tuple[str, ...]:
    return access.parameters(op)[0]


def function_of(
    op: OpOverload, entry: Entry, ranks_of: Callable[[str], int], world: str
) -> Callable[..., Any]:
    """Return what a call of the op does, as a function of its arguments by name."""
    names, _, defaults = access.parameters(op)
    if isinstance(entry, CollectiveOp):
        collective = entry
        stated = (
            collective.tensor_of(op),
            collective.group,
            collective.ranks,
            collective.reduce_op,
        )
        missing = [x for x in (*stated, collective.dim) if x and str(x) == x and x not in names]
        if missing:
            raise GraphError(
                f"the CollectiveOp of {op} names an argument that the op does not have",
                found=f"{missing[0]!r}; it has {', '.join(names)}",
                remedy="name the arguments as the schema of the op does",
            )

        def communicate(**arguments: Any) -> Any:
            called_with = {**defaults, **arguments}
            name = (
                called_with[collective.group] if collective.group else world or opaque.name_of(op)
            )
            return communicated(collective, op, called_with, str(name), ranks_of(str(name)))

        return communicate
    assert isinstance(entry, ComposedOp), f"{op} is opaque"
    function = entry.loaded()
    wants_ranks = "ranks" in inspect.signature(function).parameters and "ranks" not in _names(op)

    def compose(**arguments: Any) -> Any:
        called_with = {**defaults, **arguments}
        group = called_with.get("group_name", called_with.get("group", world))
        return function(**called_with, **({"ranks": ranks_of(str(group))} if wants_ranks else {}))

    return compose


def communicated(
    entry: CollectiveOp, op: OpOverload, called_with: Mapping[str, Any], group: str, ranks: int
) -> torch.Tensor | None:
    """Return what a collective gives, and write it where the op writes it."""
    x: torch.Tensor = called_with[entry.tensor_of(op)]
    dim = called_with[entry.dim] if isinstance(entry.dim, str) else entry.dim
    dim, reduction = dim % max(x.dim(), 1), called_with.get(entry.reduce_op, entry.op)
    match entry.kind:
        case Kind.ALL_REDUCE:
            result = c10d.all_reduce(x, reduction, group)
        case Kind.REDUCE_SCATTER:
            if dim:
                x = torch.unflatten(x, dim, (ranks, -1)).movedim(dim, 0).flatten(0, 1)
            result = c10d.reduce_scatter_tensor(x, reduction, ranks, group)
        case Kind.ALL_GATHER:
            result = c10d.all_gather_into_tensor(x, ranks, group)
        case Kind.ALL_TO_ALL:
            sizes = [x.shape[0] // ranks] * ranks
            result = c10d.all_to_all_single(x, sizes, sizes, group)
        case Kind.BROADCAST:
            result = c10d.broadcast(x, int(called_with.get("src", 0)), group)
    result = c10d.wait_tensor(result)
    if entry.kind == Kind.ALL_GATHER and dim:
        result = torch.unflatten(result, 0, (ranks, -1)).movedim(0, dim).flatten(dim, dim + 1)
    for argument in written_by(op):
        called_with[argument.name].copy_(result)
    return result if op._schema.returns else None


def _check_results(node: fx.Node, results: Any) -> None:
    """Raise GraphError unless ``results`` are of the shapes and types that ``node`` states."""

    def types(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [types(x) for x in value]
        value = value.meta["val"] if isinstance(value, fx.Node) else value
        if not isinstance(value, torch.Tensor):
            return None
        return str(value.dtype).removeprefix("torch."), list(map(str, shape_key(value)))

    stated, declared = types(access.value(node)), types(results)
    if stated != declared:
        raise GraphError(
            f"what {called(node)} is declared to do does not give what the graph states",
            where=access.place(node),
            found=f"declared: {declared}; stated: {stated}",
            remedy="correct its declaration, which check_op compares with its kernel",
        )
