"""Computations on rows that each rank does for some of them: what experts are, seen from outside.

A *region* is everything between values that all ranks of a group hold alike, one row per token, and
one partial sum of as many rows. Whether its rows may be sent to the ranks that need them, instead
of being gathered, the checker says (``compiler.check.row_ownership``).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from compiler.analysis.replication import replicated_over, replication
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
    inputs: dict[fx.Node, None] = {}
    depends: dict[fx.Node, bool] = {}

    def is_input(node: fx.Node) -> bool:
        if not access.is_tensor(node) or not access.shape(node):
            return False
        alike = replicated_over(classes[node], groups)
        return alike and bool(size_key(access.shape(node)[0]) == rows)

    waiting = [output]
    while waiting:
        node = waiting[-1]
        if node not in depends and is_input(node):
            inputs[node], depends[node] = None, True
        elif node not in depends and (node.op != "call_function" or not access.is_operand(node)):
            depends[node] = False
        elif node not in depends and (
            left := [x for x in node.all_input_nodes if x not in depends]
        ):
            if node.target is WAIT or node.target in OPS:
                return None
            waiting += left
            continue
        elif node not in depends:
            depends[node] = any(depends[x] for x in node.all_input_nodes)
        waiting.pop()
    inner = {n for n, d in depends.items() if d and n not in inputs}
    if output not in inner:
        return None
    return ExpertRegion(tuple(inputs), tuple(n for n in graph.graph.nodes if n in inner))
