"""Canonical numbers of values: dense, in graph order, whatever the tracer named them."""

from __future__ import annotations

from torch import fx

from compiler.ir import access
from compiler.ir.collectives import WAIT


def numbers(graph: fx.Graph) -> dict[fx.Node, int]:
    """Number of every value; a collective and its wait are one value and share a number."""
    found: dict[fx.Node, int] = {}
    count = 0
    for node in graph.nodes:
        if node.op == "output":
            continue
        if node.target is WAIT and node.prev is access.operands(node)[0]:
            found[node] = found[node.prev]
        else:
            found[node] = count
            count += 1
    return found
