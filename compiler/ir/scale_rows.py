"""The call of a node on tensors of more rows, for ops that treat the rows of a dimension alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from compiler.ir import access
from compiler.ir.row_ops import resized
from compiler.ir.rules import meaning
from compiler.ir.rules.meaning import size_key

SIZE_ARGUMENTS = ("size", "shape")
"""Arguments in which an op states the size of its result; for other rows it is left to the op."""


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
    state_sizes(copy, access.shape(node) if access.is_tensor(node) else (), dim)
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


def state_sizes(node: fx.Node, shape: access.Shape, left_open: int | None = None) -> None:
    """Write the sizes of its result that a call leaves to its op (-1), as far as they are numbers.

    Args:
        node: the call.
        shape: of its result.
        left_open: the dimension whose size is left to the op.
    """
    has_sizes = isinstance(node.target, OpOverload) and shape
    for name in SIZE_ARGUMENTS if has_sizes else ():
        sizes = access.written_arguments(node).get(name)
        if not isinstance(sizes, list | tuple):
            continue
        pairs = zip(sizes, shape, strict=False)
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
    tensors = example if isinstance(example, list | tuple) else [example]
    return [tuple(map(size_key, x.shape)) for x in tensors]
