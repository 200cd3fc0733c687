"""Recognizes add + RMSNorm behind a sum over ranks by what it computes.

A *region* is everything between the sum, a residual and a weight on one side and the normalized
rows on the other. Whether it is the norm that a kernel computes,

    y = h * rsqrt(mean(h * h) + eps) * (weight + offset),   h = sum + residual,

is for the checker to say: the region is compared with the fused op, which means its composition.
Operand order, grouping and conversions between floating-point types do not matter to it, nor how
squares, roots and quotients are written (``compiler.check.real_normal_form``). A norm written by
other identities is not recognized; nothing that is another function is. ``eps`` and ``offset`` are
tried from the numbers that occur in the region.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from compiler.check import check
from compiler.check.real_normal_form import RMS_NORMS
from compiler.ir import access
from compiler.ir.collectives import Collective
from compiler.ir.fused_ops import ALL_REDUCE_NORM, why_unsupported
from compiler.ir.graph import SpmdGraph, spmd_graph_of
from compiler.ir.mesh import Mesh
from compiler.ir.rules.meaning import shape_key, size_key

aten = torch.ops.aten
Emit = Callable[..., fx.Node]
MAX_NODES = 24
"""Values looked at behind one addition: a norm is about ten."""


@dataclass(frozen=True)
class NormRegion:
    """An addition and the norm of its result.

    Attributes:
        addition: h, the sum over ranks and the residual added up.
        residual: the other summand.
        weight: the only other input.
        inner: what computes ``y`` from ``addition`` and ``weight``, in order, ``y`` last.
        eps: under the root.
        offset: added to the weight.
    """

    addition: fx.Node
    residual: fx.Node
    weight: fx.Node
    inner: tuple[fx.Node, ...]
    eps: float
    offset: float

    @property
    def y(self) -> fx.Node:
        """The normalized rows."""
        return self.inner[-1]

    @property
    def rows(self) -> tuple[fx.Node, ...]:
        """The addition and what is computed from it; not what is computed from the weight."""
        values = {self.addition: None}
        for node in self.inner:
            if not values.keys().isdisjoint(node.all_input_nodes):
                values[node] = None
        return tuple(values)


class Recognizer:
    """Finds norm regions in one graph; every spelling is checked once.

    Args:
        graph: the SPMD graph.
    """

    def __init__(self, graph: SpmdGraph) -> None:
        self.graph = graph
        self._known: dict[object, tuple[float, float] | None] = {}

    def fusable(self, reduction: Collective) -> NormRegion | str:
        """The region behind a reduction that a kernel takes, or why there is none."""
        if reduction.op != "sum":
            return f"it reduces by {reduction.op}"
        if reduction.result is None:
            return "nothing waits for it"
        operand = access.tensor(reduction.operand)
        if why := why_unsupported(operand.shape[-1] if operand.dim() else 0, operand.dtype):
            return why
        addition = self._addition(reduction.result)
        if isinstance(addition, str):
            return addition
        left, right = access.operands(addition)
        residual = right if left is reduction.result else left
        for y in self._rows_computed_from(addition):
            if (region := _slice(y, addition)) is None:
                continue
            weight, inner = region
            key = _spelling(inner, addition, weight)
            if key not in self._known:
                self._known[key] = self._as_norm(addition, weight, inner)
            numbers = self._known[key]
            if numbers is not None:
                return NormRegion(addition, residual, weight, inner, *numbers)
        return "no RMSNorm of the sum and its residual follows"

    def _addition(self, total: fx.Node) -> fx.Node | str:
        users = list(total.users)
        if len(users) != 1:
            return f"the sum over ranks has {len(users)} users, not one addition"
        (addition,) = users
        rule = self.graph.meanings.get(addition)
        operands = access.operands(addition) if addition.op == "call_function" else ()
        if rule is None or rule.terms is None or len(rule.terms) != 2 or len(operands) != 2:
            return "the sum over ranks is not added to a residual"
        plain = all(len(t.operands) == 1 and not t.fixed and t.coefficient == 1 for t in rule.terms)
        # Sizes that a view computed are other expressions; adding makes them equal or refuses.
        types = {(access.concrete_shape(n), access.dtype(n)) for n in (*operands, addition)}
        if not plain or len(types) > 1 or operands[0] is operands[1]:
            return "the sum over ranks is not added to a residual of its shape and type"
        return addition

    def _rows_computed_from(self, addition: fx.Node) -> list[fx.Node]:
        """Values shaped and typed like ``addition`` that depend on it row by row, nearest first."""
        reached, waiting, like = {addition}, list(addition.users), []
        sizes = shape_key(access.tensor(addition))
        kept = (sizes, (*sizes[:-1], 1))
        while waiting and len(reached) < MAX_NODES:
            node = waiting.pop(0)
            if node in reached or node.op != "call_function":
                continue
            value = node.meta.get("val")
            if not isinstance(value, tuple) and shape_key(value) not in kept:
                continue
            reached.add(node)
            waiting += list(node.users)
            if shape_key(value) == sizes and access.dtype(node) == access.dtype(addition):
                like.append(node)
        return like

    def _as_norm(
        self, addition: fx.Node, weight: fx.Node, inner: tuple[fx.Node, ...]
    ) -> tuple[float, float] | None:
        """``eps`` and ``offset`` with which the fused op computes what the region does."""

        def region(emit: Emit, x: fx.Node, residual: fx.Node, factors: fx.Node) -> fx.Node | None:
            values = {addition: emit(aten.add.Tensor, x, residual), weight: factors}
            for node in inner:
                if not isinstance(node.meta["val"], torch.Tensor | tuple | list):
                    return None  # a number that may be that of the rows, which are others here
                args, kwargs = access.map_operands(node, values.__getitem__)
                values[node] = emit(node.target, *args, **kwargs)
            return values[inner[-1]]

        def fused(emit: Emit, *operands: fx.Node) -> fx.Node:
            return emit(operator.getitem, emit(ALL_REDUCE_NORM, *operands, eps, offset, "tp"), 0)

        source = _on_few_rows(addition, weight, region)
        numbers = sorted({x for node in inner for x in _numbers(node)}) if source else ()
        for eps in (x for x in numbers if x > 0):
            for offset in dict.fromkeys((0.0, *numbers)):
                target = _on_few_rows(addition, weight, fused)
                if source and target and check(source, target).verdict.runs:
                    return eps, offset
        return None


def _on_few_rows(
    addition: fx.Node, weight: fx.Node, body: Callable[..., fx.Node | None]
) -> SpmdGraph | None:
    """A graph of two rows of the addition's operands, and a weight; None for ops of other rows.

    ``body`` adds nodes through the function that it gets, and returns the result.
    """
    graph = fx.Graph()

    def emit(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = graph.call_function(target, args, kwargs)
        values = fx.node.map_arg((args, kwargs), access.value)
        node.meta["val"] = target(*values[0], **values[1])
        return node

    width, few = access.shape(addition)[-1], (2,) * (len(access.shape(addition)) - 1)
    sizes = {"x": (*few, width), "residual": (*few, width), "weight": access.shape(weight)}
    inputs = [graph.placeholder(name) for name in sizes]
    for node, shape, like in zip(inputs, sizes.values(), (addition, addition, weight), strict=True):
        node.meta["val"] = torch.empty(shape, dtype=access.dtype(like), device="meta")
    try:
        result = body(emit, *inputs)
    except (OverflowError, RuntimeError, TypeError, ValueError):
        result = None
    if result is None:
        return None
    graph.output((result,))
    return spmd_graph_of(nn.Module(), graph, Mesh({"tp": 1}))


def _slice(y: fx.Node, addition: fx.Node) -> tuple[fx.Node, tuple[fx.Node, ...]] | None:
    """The input beside ``addition`` that ``y`` is computed from, and all in between, in order."""
    nodes: dict[fx.Node, None] = {}
    inputs: dict[fx.Node, None] = {}

    def visit(node: fx.Node) -> bool:
        if node is addition or node in nodes or node in inputs:
            return True
        if node.op != "call_function":
            inputs[node] = None
            return len(inputs) == 1 and len(access.shape(node)) == 1
        if len(nodes) > MAX_NODES or not all(visit(n) for n in node.all_input_nodes):
            return False
        nodes[node] = None
        return True

    if not visit(y) or len(inputs) != 1:
        return None
    (weight,) = inputs
    return weight, tuple(nodes)


def _spelling(inner: tuple[fx.Node, ...], addition: fx.Node, weight: fx.Node) -> object:
    """Equal for regions that are written alike."""
    names = {addition: "h", weight: "w", **{node: str(i) for i, node in enumerate(inner)}}
    return (
        access.dtype(addition),
        size_key(access.shape(addition)[-1]),
        len(access.shape(addition)),
        tuple(
            (n.target, str(fx.node.map_arg((n.args, n.kwargs), lambda x: names[x]))) for n in inner
        ),
    )


def _numbers(node: fx.Node) -> list[float]:
    """Numbers that the call states, and the least difference from 1 where it leaves eps open."""
    literals = [x for x in (*node.args, *node.kwargs.values()) if isinstance(x, int | float)]
    numbers = [float(x) for x in literals if not isinstance(x, bool)]
    if node.target in RMS_NORMS:
        numbers.append(float(torch.finfo(access.dtype(access.operands(node)[0])).eps))
    return numbers
