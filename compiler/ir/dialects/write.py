"""Write a graph in the dialects that it was read from, so that it runs where they are.

What a call was read as, and is still there, becomes that call again, on other operands maybe.
Collectives that a rewrite brought in become ops that the source calls for the same group, or those
of the same namespaces. What fits none stays as it is: it computes the same.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx
from torch._higher_order_ops.auto_functionalize import auto_functionalized_v2
from torch._ops import OpOverload

from compiler.ir import access
from compiler.ir.collectives import WAIT, Collective, Kind, collective
from compiler.ir.dialects.read import READ, Reading, written_by
from compiler.ir.dialects.registry import REGISTERED, CollectiveOp
from compiler.ir.graph_copy import GraphCopy
from compiler.ir.rules.meaning import size_key

Binding = dict[fx.Node, fx.Node]
"""Node of a traced function -> node of the graph."""


def write(graph: fx.Graph, readings: Sequence[Reading], ranks_of: Callable[[str], int]) -> fx.Graph:
    """Return ``graph`` in the dialects that its source was read from.

    Args:
        graph: was read, and rewritten. Not changed.
        readings: calls of the source.
        ranks_of: name of a group -> number of its ranks.
    """
    written, position = GraphCopy(), {node: i for i, node in enumerate(graph.nodes)}
    calls = dict[fx.Node, tuple[Reading, Binding]]()
    for reading, binding in _intact(graph, readings):
        inside = [binding[x] for x in _results(reading) if x in binding]
        calls[min(inside, key=position.__getitem__)] = reading, binding
    ops = _Ops.of(readings)
    op_of = {node: op for node in graph.nodes if (op := ops.op_for(node)) is not None}
    replaced = {start for wait in op_of for start in wait.all_input_nodes}
    for node in graph.nodes:
        if node in calls:
            reading, binding = calls[node]
            for result, value in _called(written, reading, binding, node).items():
                written.values[binding[result]] = value
        elif node in written.values or node in replaced:
            continue
        elif node in op_of:
            written.values[node] = op_of[node].called(written, node, ranks_of)
        else:
            written.add(node)
    _erase_unused(written.target)
    return written.target


def _erase_unused(graph: fx.Graph) -> None:
    """Erase what was read, and is called again."""
    for node in reversed(graph.nodes):
        if node.op == "call_function" and not node.users and READ in node.meta:
            graph.erase_node(node)


# ---- calls that are still there


def _results(reading: Reading) -> list[fx.Node]:
    """Return the results of what a call was read as that are computed there, in order."""
    leaves = pytree.tree_leaves(access.returned(reading.traced))
    return [x for x in leaves if isinstance(x, fx.Node) and x.op != "placeholder"]


def _intact(graph: fx.Graph, readings: Iterable[Reading]) -> Iterator[tuple[Reading, Binding]]:
    """Yield each call of which all is there, and what its function's values are in the graph."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    pieces: dict[tuple[Reading, fx.Node], list[fx.Node]] = {}
    for node in graph.nodes:
        if (piece := node.meta.get(READ)) and node.target == piece.original.target:
            pieces.setdefault((piece.reading, piece.original), []).append(node)
    taken: set[fx.Node] = set()
    for reading in readings:
        binding: Binding | None = {}
        for result in dict.fromkeys(_results(reading)):
            tries = (_bound(result, x, binding or {}) for x in pieces.get((reading, result), ()))
            matches = [one for one in tries if one is not None]
            if matches:
                (binding, *more) = matches
                binding = None if more else binding
        inputs = access.node_of(reading.traced, "placeholder")
        outputs = [binding[x] for x in _results(reading) if x in binding] if binding else []
        if not binding or not outputs or any(x not in binding for x in inputs):
            continue
        first = min(order[x] for x in outputs)
        own = {node for original, node in binding.items() if original not in inputs}
        alone = all(own.issuperset(node.users) for node in own.difference(outputs))
        precede = all(order[binding[x]] < first for x in inputs)
        if alone and precede and taken.isdisjoint(outputs):
            taken.update(outputs)
            yield reading, binding


def _bound(original: fx.Node, node: Any, binding: Binding) -> Binding | None:
    """Return ``binding`` with what ``node`` reads, if it computes what ``original`` does."""
    if original in binding:
        return binding if binding[original] is node else None
    if not isinstance(node, fx.Node) or (original.op != "placeholder") > (
        original.target == node.target
    ):
        return None
    extended: Binding | None = {**binding, original: node}
    if original.op == "placeholder":
        return extended
    pairs = [pytree.tree_flatten((x.args, x.kwargs)) for x in (original, node)]
    (wanted, structure), (actual, other) = pairs
    if structure != other:
        return None
    for x, y in zip(wanted, actual, strict=True):
        if extended is None:
            return None
        if isinstance(x, fx.Node):
            extended = _bound(x, y, extended)
        elif isinstance(y, fx.Node) or size_key(x) != size_key(y):
            return None
    return extended


def _called(
    written: GraphCopy, reading: Reading, binding: Binding, like: fx.Node
) -> dict[fx.Node, fx.Node]:
    """Call what was read; return its results by the nodes of the function that compute them."""
    inputs = access.node_of(reading.traced, "placeholder")
    values = {x: written.values[binding[p]] for x, p in zip(reading.operands, inputs, strict=True)}
    call = written.target.node_copy(reading.node, values.__getitem__)
    meta = {key: value for key, value in like.meta.items() if key != READ}
    returned = access.returned(reading.traced)

    def val(result: Any) -> Any:
        if not isinstance(result, fx.Node):
            return None
        return access.value(binding[result]) if result in binding else result.meta["val"]

    call.meta = {**meta, "val": fx.node.map_aggregate(returned, val)}

    def picked(node: fx.Node, value: Any) -> Iterator[tuple[fx.Node, fx.Node]]:
        if isinstance(value, fx.Node) and value in binding:
            yield value, node
        for i, part in enumerate(value if isinstance(value, list | tuple) else ()):
            if any(x in binding and x.op != "placeholder" for x in pytree.tree_leaves(part)
                   if isinstance(x, fx.Node)):  # fmt: skip
                item = written.target.call_function(operator.getitem, (node, i))
                item.meta = {**meta, "val": fx.node.map_aggregate(part, val)}
                yield from picked(item, part)

    return {result: node for result, node in picked(call, returned) if result.op != "placeholder"}


# ---- collectives of a rewrite


@dataclass(frozen=True)
class _Op:
    """An op of others that is a collective, and how the source calls it.

    Attributes:
        op: the op.
        entry: what it is declared to be.
        static: its arguments but for the tensor.
    """

    op: OpOverload
    entry: CollectiveOp
    static: Mapping[str, Any]

    def called(self, written: GraphCopy, wait: fx.Node, ranks_of: Callable[[str], int]) -> fx.Node:
        """Call it for the collective that ``wait`` is the result of."""
        what = collective(wait)
        assert what is not None, f"%{wait.name} is not a collective's"
        entry, operand = self.entry, written.values[what.operand]
        tensor = entry.tensor_of(self.op)
        stated = {
            entry.group: what.group, entry.ranks: ranks_of(what.group), entry.reduce_op: what.op,
            str(entry.dim): 0,
        }  # fmt: skip
        names = access.parameters(self.op)[0]
        static = {**self.static, **{n: x for n, x in stated.items() if n in names}}
        meta = {key: value for key, value in wait.meta.items() if key != READ}
        if not self.op._schema.is_mutable:
            arguments = {**static, tensor: operand}
            call = written.target.call_function(self.op, (), {n: arguments[n] for n in names})
            call.meta = meta
            return call
        bases = {f"_{tensor}_base_index": 0, "_all_bases": [operand]}
        call = written.target.call_function(auto_functionalized_v2, (self.op,), static | bases)
        call.meta = {**meta, "val": (None, access.value(wait))}
        result = written.target.call_function(operator.getitem, (call, 1))
        result.meta = meta
        return result


@dataclass(frozen=True)
class _Ops:
    """The ops for collectives, by kind, group and reduction."""

    by_kind: Mapping[tuple[str, str], _Op]
    namespaces: Mapping[str, frozenset[str]]

    @staticmethod
    def of(readings: Iterable[Reading]) -> _Ops:
        """Return the ops that calls of the source were read from, and their namespaces."""
        by_kind, namespaces = dict[tuple[str, str], _Op](), dict[str, set[str]]()
        for reading in readings:
            op, entry = reading.op, reading.entry
            if not isinstance(entry, CollectiveOp):
                continue
            for start in reading.traced.nodes:
                what = collective(start) if start.target is not WAIT else None
                if what is None:
                    continue
                namespaces.setdefault(what.group, set()).add(op.namespace)
                static = {n: x for n, x in _static(reading) if n != entry.tensor_of(op)}
                by_kind.setdefault((entry.kind, what.group), _Op(op, entry, static))
        return _Ops(by_kind, {g: frozenset(names) for g, names in namespaces.items()})

    def op_for(self, node: fx.Node) -> _Op | None:
        """Return the op that does what the collective of ``node`` does, a wait; None for others."""
        what = collective(node) if node.target is WAIT else None
        if what is None or what.group not in self.namespaces:
            return None
        op = self.by_kind.get((what.kind, what.group)) or self._registered(what)
        if op is None or (op.entry.dim != 0 and isinstance(op.entry.dim, int)):
            return None
        if {a.name for a in written_by(op.op)} - {op.entry.tensor_of(op.op)}:
            return None  # to a tensor that would have to be made
        reduces = what.kind in (Kind.ALL_REDUCE, Kind.REDUCE_SCATTER) and not op.entry.reduce_op
        if what.kind not in WRITTEN or (reduces and what.op != op.entry.op):
            return None
        return op

    def _registered(self, what: Collective) -> _Op | None:
        """Return an installed op of the same namespaces whose arguments are all to be had."""
        for name, entry in REGISTERED.items():
            namespace, _, rest = name.partition("::")
            if namespace not in self.namespaces[what.group] or not isinstance(entry, CollectiveOp):
                continue
            packet = getattr(getattr(torch.ops, namespace), rest.partition(".")[0], None)
            if entry.kind != what.kind or packet is None:
                continue
            op = getattr(packet, rest.partition(".")[2] or "default")
            names, _, defaults = access.parameters(op)
            own = {entry.tensor_of(op), entry.group, entry.ranks, entry.reduce_op, str(entry.dim)}
            if set(names) <= own | set(defaults) and not op._schema.is_mutable:
                return _Op(op, entry, defaults)
        return None


WRITTEN = (Kind.ALL_REDUCE, Kind.REDUCE_SCATTER, Kind.ALL_GATHER)
"""Kinds of collectives that passes write."""


def _static(reading: Reading) -> Iterator[tuple[str, Any]]:
    """Yield the arguments of a call that are not tensors, by name."""
    op, node = reading.op, reading.node
    args = node.args if node.target is op else ()
    for name, value in {**dict(zip(access.parameters(op)[0], args, strict=False)),
                        **node.kwargs}.items():  # fmt: skip
        if name in access.parameters(op)[0]:
            yield name, value
