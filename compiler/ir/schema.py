"""Whether a node fits the schema of its op: what it is called with, and what it is said to give."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import fx
from torch._ops import OpOverload

from compiler.errors import GraphError
from compiler.ir import access


def check_node(node: fx.Node) -> None:
    """Raise GraphError unless ``node`` fits the schema of its op, where the op has one.

    Raises:
        GraphError: no ``meta["val"]`` though the node has a result, or no tensor there though the
            op gives one; arguments that are missing, too many or not known to the op.
    """
    example = access.value(node) if access.has_result(node) else None
    if not isinstance(node.target, OpOverload):
        return
    if why := _misfit(node, node.target):
        raise GraphError(
            f"value %{node.name} does not call {node.target} as it is declared",
            where=access.source_line(node),
            found=why,
            remedy=f"call it as {node.target._schema}",
        )
    if _gives_one_tensor(node.target) and not isinstance(example, torch.Tensor):
        raise GraphError(
            f"meta['val'] of value %{node.name} must be a tensor, as the result of {node.target}",
            where=access.source_line(node),
            found=type(example).__name__,
            remedy=access.STATE_TYPES,
        )


def _misfit(node: fx.Node, target: OpOverload) -> str:
    """Return what is wrong with the names and the number of arguments, empty if nothing is."""
    positional, named, required = _parameters(target)
    count = len(node.args)
    if count > len(positional):
        return f"{count} positional arguments, it takes {len(positional)}"
    if unknown := [name for name in node.kwargs if name not in (*positional[count:], *named)]:
        return f"argument {unknown[0]!r} is given and not known, or given twice"
    written = {*positional[:count], *node.kwargs}
    if missing := [name for name in required if name not in written]:
        return f"argument {missing[0]!r} is missing"
    return ""


@lru_cache(maxsize=1 << 12)
def _parameters(target: OpOverload) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return the names of arguments by position, of those by name alone, and of those required."""
    listed = target._schema.arguments
    return (
        tuple(a.name for a in listed if not a.kwarg_only),
        tuple(a.name for a in listed if a.kwarg_only),
        tuple(a.name for a in listed if not a.has_default_value()),
    )


@lru_cache(maxsize=1 << 12)
def _gives_one_tensor(target: OpOverload) -> bool:
    returns = target._schema.returns
    return len(returns) == 1 and isinstance(returns[0].type, torch.TensorType)
