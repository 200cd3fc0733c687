"""Order a graph so that communication overlaps what does not depend on it.

Before    %1: f32[4, 8] {tp: R} = comm.all_reduce(%0) {axis = tp, op = sum}
          %2: f32[4, 8] {tp: R} = aten.neg(%3)
          %4: f32[4, 8] {tp: R} = aten.add.Tensor(%1, %2)
After     %1: f32[4, 8] = comm.all_reduce_start(%0) {axis = tp, op = sum}
          %2: f32[4, 8] {tp: R} = aten.neg(%3)
          %3: f32[4, 8] {tp: R} = comm.wait(%1)
          %4: f32[4, 8] {tp: R} = aten.add.Tensor(%3, %2)

Law       a functional op gives the same wherever it stands behind its operands.
Exact     bit by bit.
Requires  nothing.
Ensures   every collective starts as soon as its operand is there, and is waited for where its
          result is first read. Collectives keep their order among each other: all ranks hold one
          graph, and start the same ones in the same order.
Saves     the time of collectives that work stands beside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from compiler.ir.collectives import OPS, WAIT
from compiler.ir.graph import SpmdGraph
from compiler.ir.graph_copy import GraphCopy
from compiler.ir.remark import PassResult


@dataclass(frozen=True)
class ScheduleCollectives:
    """Starts collectives early, and waits late."""

    name: ClassVar[str] = "schedule-collectives"

    def apply(self, graph: SpmdGraph) -> PassResult:
        """The graph in another order."""
        order = schedule(graph.graph)
        if order == list(graph.graph.nodes):
            return PassResult(graph, (), changed=False)
        copy = GraphCopy()
        copy.add_all(order)
        return PassResult(graph.with_graph(copy.target, copy.origins), (), changed=True)


def schedule(graph: fx.Graph) -> list[fx.Node]:
    """The nodes in the order in which they run. Linear in their number."""
    order: dict[fx.Node, None] = {}
    starts = [node for node in graph.nodes if node.target in OPS][::-1]
    waiting: dict[fx.Node, None] = {}

    def place(node: fx.Node) -> None:
        waiting.pop(node, None)
        for operand in node.all_input_nodes:
            if operand in waiting:
                place(operand)
        order[node] = None
        start_ready()

    def start_ready() -> None:
        while starts and all(n in order for n in starts[-1].all_input_nodes):
            place(starts.pop())

    order |= dict.fromkeys(node for node in graph.nodes if node.op == "placeholder")
    start_ready()
    for node in graph.nodes:
        if node.target is WAIT and node.all_input_nodes[0].target in OPS:
            waiting[node] = None
            continue
        for left in tuple(waiting) if node.op == "output" else ():
            place(left)
        if node not in order:
            place(node)
    return list(order)
