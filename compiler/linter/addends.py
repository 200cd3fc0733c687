"""What is done to addends on purpose: they are compressed to be exchanged, or scaled alike."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from compiler.ir import access
from compiler.ir.collectives import WAIT, Kind, collective
from compiler.ir.graph import SpmdGraph
from compiler.ir.rules import contraction

BITS = torch.ops.aten.view.dtype
"""Takes the bits of elements for elements of another type."""
SCALES: Mapping[object, str] = {
    torch.ops.aten.div.Tensor: "divides",
    torch.ops.aten.mul.Tensor: "multiplies",
}


def is_compressed(graph: SpmdGraph, node: fx.Node) -> bool:
    """Return whether a partial sum is quantized in order to be exchanged and summed by hand.

    That is: from it, by calls that are not products, come elements of one byte that a gather
    or an all_to_all hands to the other ranks.
    """
    stack, seen = list(node.users), set(node.users)
    while stack:
        reader = stack.pop()
        what = collective(reader)
        if what is not None and what.kind in (Kind.ALL_GATHER, Kind.ALL_TO_ALL):
            dtype = access.dtype(what.operand)
            if dtype.itemsize == 1 and dtype is not torch.bool:
                return True
        is_known = graph.meanings.get(reader) is not None or reader.target is BITS
        if is_known and reader.target not in contraction.RULES:
            stack += [user for user in reader.users if user not in seen]
            seen |= set(reader.users)
    return False


def is_scale(graph: SpmdGraph, node: fx.Node) -> bool:
    """Return whether of addends only the largest is taken, to divide and later to multiply by.

    The ranks' addends are scaled alike then, whatever the number is.
    """
    stack, seen, uses = [node], {node}, set[str]()
    while stack:
        step = stack.pop()
        for user in step.users:
            read, what, rule = access.operands(user), collective(user), graph.meanings.get(user)
            chosen = None if rule is None else rule.selection
            scales = user.target in SCALES and len(read) == 2
            if scales and read[1] is step and access.tensor(step).numel() == 1:
                uses.add(SCALES[user.target])
            elif (
                (what is not None and what.op == "max")
                or (chosen is not None and chosen.combine == "max")
                or (rule is not None and rule.pointwise and set(read) == {step})
                or user.target is WAIT
            ):
                stack += [user] if user not in seen else []
                seen.add(user)
            else:
                return False
    return uses == set(SCALES.values())
