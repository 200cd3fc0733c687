"""Least reduced: what must be for one value alone, wherever its reductions are placed.

A carrier is reduced itself, or all that it is linear in is: the least that takes is a minimum cut
of the cone above it, in which nodes have their bytes, or elements, as capacity. What values outside
the cone read reduced costs nothing more.

Direction  from what the carriers of the cone are linear in, to the value.
Result     a flow, which no cut is less than: what several carriers of the cone read is shared out
           between them in equal parts. It is the cut wherever that loses nothing, as in trees.
Refuses    nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction

from torch import fx

from compiler.analysis.partial_values import Carrier
from compiler.analysis.reductions import reads_shape
from compiler.ir import access


def least_reduced(
    leaf: fx.Node, found: Mapping[fx.Node, Carrier], size: Callable[[fx.Node], int]
) -> Fraction:
    """What reductions that only ``leaf`` needs take at least; 0 if all are needed anyway."""
    uses: dict[fx.Node, int] = {leaf: 1}
    queue = [leaf]
    while queue:
        for x in found[queue.pop()].operands:
            queue += [] if x in uses else [x]
            uses[x] = uses.get(x, 0) + 1
    flow: dict[fx.Node, Fraction] = {}
    for at in sorted(uses):
        operands, flow[at] = found[at].operands, Fraction(0)
        if found[at].addend or sum(not reads_shape(user) for user in at.users) == 1:
            below = sum((flow[x] / uses[x] for x in operands), Fraction(0))
            own = Fraction(size(at)) if access.is_tensor(at) else below
            flow[at] = min(own, below) if operands else own
    return flow[leaf]
