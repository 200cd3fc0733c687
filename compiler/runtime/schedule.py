"""Orders a graph so that communication overlaps what does not depend on it.

Before    a = x @ u;  s = all_reduce(a);  t = wait(s);  b = x @ v;  return t + b
After     a = x @ u;  s = all_reduce(a);  b = x @ v;  t = wait(s);  return t + b

Every collective starts as soon as its operand is there, and is waited for where its result is first
read. Collectives keep their order among each other: all ranks hold one graph, and start the same
ones in the same order.
"""

from __future__ import annotations

from torch import fx

from compiler.ir.collectives import OPS, WAIT


def scheduled(graph: fx.Graph) -> fx.Graph:
    """The same values in another order. Linear in the number of values."""
    target, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    starts = [node for node in graph.nodes if node.target in OPS][::-1]
    waiting: dict[fx.Node, None] = {}

    def emit(node: fx.Node) -> None:
        for operand in node.all_input_nodes:
            if operand in waiting:
                del waiting[operand]
                emit(operand)
        copies[node] = target.node_copy(node, lambda x: copies[x])
        while starts and all(n in copies for n in starts[-1].all_input_nodes):
            emit(starts.pop())

    for node in graph.nodes:
        if node in copies:
            continue
        if node.target is WAIT and node.all_input_nodes[0].target in OPS:
            waiting[node] = None
            continue
        if node.op == "output":
            for left in list(waiting):
                if left in waiting:
                    del waiting[left]
                    emit(left)
        emit(node)
    return target
