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
    order: dict[fx.Node, None] = {}
    starts = [node for node in graph.nodes if node.target in OPS][::-1]
    waiting: dict[fx.Node, None] = {}

    def place(node: fx.Node) -> None:
        waiting.pop(node, None)
        for operand in node.all_input_nodes:
            if operand in waiting:
                place(operand)
        order[node] = None
        while starts and all(n in order for n in starts[-1].all_input_nodes):
            place(starts.pop())

    for node in graph.nodes:
        if node.target is WAIT and node.all_input_nodes[0].target in OPS:
            waiting[node] = None
            continue
        for left in tuple(waiting) if node.op == "output" else ():
            place(left)
        if node not in order:
            place(node)
    target, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in order:
        copies[node] = target.node_copy(node, lambda x: copies[x])
    return target
