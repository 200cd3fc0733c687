"""Computations on rows that each rank does for some of them: what experts are, seen from outside.

A *region* is everything between values that all ranks of a group hold alike, one row per token, and
one partial sum of as many rows. Whether its rows may be sent to the ranks that need them, instead
of being gathered, the checker says (``compiler.check.row_ownership``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx

from compiler.analysis.replication import replicated_over, replication
from compiler.analysis.traversal import reached
from compiler.ir import access
from compiler.ir.collectives import OPS, WAIT
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import ReplicaGroups
from compiler.ir.rules.meaning import size_key


@dataclass(frozen=True)
class ExpertRegion:
    """A computation on rows.

    Attributes:
        inputs: values that all ranks hold alike, dimension 0 of each counting the same rows.
        nodes: what computes the output from them, in order, the output last.
    """

    inputs: tuple[fx.Node, ...]
    nodes: tuple[fx.Node, ...]

    @property
    def output(self) -> fx.Node:
        """The partial sum."""
        return self.nodes[-1]


def region(graph: SpmdGraph, output: fx.Node, groups: ReplicaGroups) -> ExpertRegion | None:
    """The region that computes ``output``; None where it communicates, or reads no rows."""
    classes, rows = replication(graph), size_key(access.shape(output)[0])

    def is_input(node: fx.Node) -> bool:
        has_rows = access.is_tensor(node) and access.shape(node)[:1]
        alike = bool(has_rows) and replicated_over(classes[node], groups)
        return alike and bool(size_key(access.shape(node)[0]) == rows)

    def read(node: fx.Node) -> Iterable[fx.Node]:
        computed = node.op == "call_function" and access.is_operand(node)
        return node.all_input_nodes if computed and not is_input(node) else ()

    nodes = reached([output], read)
    inputs = tuple(filter(is_input, nodes))
    inner: dict[fx.Node, None] = {}
    for node in sorted(nodes):
        if node in inputs or not read(node):
            continue
        if node.target is WAIT or node.target in OPS:
            return None
        if any(x in inputs or x in inner for x in node.all_input_nodes):
            inner[node] = None
    return ExpertRegion(inputs, tuple(inner)) if output in inner else None
