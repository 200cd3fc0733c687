"""Write an FX graph node by node from another, as it is or on tensors of more rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from compiler.ir import access
from compiler.ir.row_ops import resized
from compiler.ir.rules import meaning
from compiler.ir.rules.meaning import same_layout, shape_key

SIZE_ARGUMENTS = ("size", "shape")
"""Arguments in which an op states the size of its result; for other rows it is left to the op."""


@dataclass(frozen=True)
class GraphCopy:
    """The graph that is written.

    Attributes:
        target: the graph.
        values: node of the source -> what stands for it in the target.
        origins: node of the target -> node of the source that does the same on operands of the
            same types, for ``SpmdGraph.with_graph``.
    """

    target: fx.Graph = field(default_factory=fx.Graph)
    values: dict[fx.Node, fx.Node] = field(default_factory=dict)
    origins: dict[fx.Node, fx.Node] = field(default_factory=dict)

    def add(self, node: fx.Node, operand: Callable[[fx.Node], fx.Node] | None = None) -> fx.Node:
        """Copy ``node``; ``operand`` maps what it reads, by default to ``values``."""
        copy = self.target.node_copy(node, operand or self.values.__getitem__)
        self.values[node], self.origins[copy] = copy, node
        return copy

    def add_all(self, nodes: Iterable[fx.Node]) -> None:
        """Copy ``nodes``, which read nothing but each other, in order."""
        for node in nodes:
            self.add(node)

    def add_recomputed(self, node: fx.Node, operand: Callable[[fx.Node], fx.Node]) -> fx.Node:
        """Copy ``node`` on operands that may be laid out otherwise; its own layout follows."""
        copy = self.add(node, operand)
        if not all(same_layout(x, operand(x)) for x in node.all_input_nodes):
            del self.origins[copy]
            evaluate(copy)
        return copy


def grown(
    target: fx.Graph, node: fx.Node, operand: Callable[[fx.Node], fx.Node], dim: int = 0
) -> fx.Node:
    """Copy ``node`` to ``target``, on ``operand`` of what it reads, which may have more rows.

    The number of rows that it states is left to be inferred; ``meta["val"]`` is computed.

    Args:
        target: where the copy goes.
        node: the call; its result counts rows along ``dim``.
        operand: value that ``node`` reads -> what the copy reads.
        dim: dimension of the result.

    Raises:
        ValueError: the op does not take operands of these shapes.
    """
    copy = target.node_copy(node, operand)
    state_sizes(copy, node, dim)
    try:
        evaluate(copy)
    except (RuntimeError, IndexError, TypeError) as error:
        target.erase_node(copy)
        raise ValueError(f"{node.target} states how many rows there are") from error
    return copy


def evaluate(node: fx.Node) -> None:
    """Set ``meta["val"]`` from those of the operands.

    A view that their strides do not allow becomes a reshape.
    """
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), access.value)
    assert callable(node.target), f"%{node.name} is not a call"
    with torch.no_grad():
        try:
            node.meta["val"] = node.target(*args, **kwargs)
        except (RuntimeError, ValueError):
            if node.target is not torch.ops.aten.view.default:
                raise
            node.target = torch.ops.aten.reshape.default
            node.meta["val"] = node.target(*args, **kwargs)


def state_sizes(node: fx.Node, like: fx.Node, left_open: int | None = None) -> None:
    """Write the sizes of its result that a call leaves to its op (-1), as far as they are numbers.

    Args:
        node: the call.
        like: a call whose result has these sizes.
        left_open: the dimension whose size is left to the op.
    """
    has_sizes = isinstance(node.target, OpOverload) and access.is_tensor(like)
    for name in SIZE_ARGUMENTS if has_sizes else ():
        sizes = access.written_arguments(node).get(name)
        if not isinstance(sizes, list | tuple) or not sizes:
            continue
        pairs = zip(sizes, access.shape(like), strict=False)
        stated = [k if type(s) is int and s == -1 and isinstance(k, int) else s for s, k in pairs]
        if left_open is not None:
            stated[left_open] = -1
        access.set_argument(node, name, stated)


def grows(node: fx.Node, more: Mapping[fx.Node, int], times: int, dim: int = 0) -> bool:
    """Return whether ``node`` on ``times`` the rows of ``more`` gives as many times its rows.

    That is: its rows are cut out of the larger result as the operands are out of theirs.

    Args:
        node: the call.
        more: operands that have more rows -> the dimension that counts them.
        times: how many times as many.
        dim: the dimension of the result that counts rows.
    """
    scratch, stand_ins = fx.Graph(), dict[fx.Node, fx.Node]()
    for x in node.all_input_nodes:
        stand_ins[x] = scratch.placeholder(x.name)
        example = access.value(x)
        stand_ins[x].meta["val"] = in_rows(example, times, more[x]) if x in more else example
    try:
        scaled = grown(scratch, node, stand_ins.__getitem__, dim)
    except ValueError:
        return False
    before, after = meaning(node), meaning(scaled)
    wanted, actual = (
        _sizes(v) for v in (in_rows(access.value(node), times, dim), access.value(scaled))
    )
    assert before is not None, f"{node.target} has no rule"
    return after is not None and after.dims == before.dims and wanted == actual


def in_rows(example: Any, times: int, dim: int) -> Any:
    """Return tensors like ``example`` with ``times`` the rows along ``dim``."""
    if isinstance(example, list | tuple):
        return [in_rows(x, times, dim) for x in example]
    return resized(example, dim, example.shape[dim] * times)


def _sizes(example: Any) -> list[tuple[Any, ...]]:
    return [shape_key(x) for x in (example if isinstance(example, list | tuple) else [example])]
