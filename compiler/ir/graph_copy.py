"""Write an FX graph node by node from another, and remember what each node became."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import fx

from compiler.ir.rules.meaning import same_layout
from compiler.ir.scale_rows import evaluate


@dataclass(frozen=True)
class GraphCopy:
    """The graph that is written.

    Attributes:
        target: the graph.
        values: node of the source -> what stands for it in the target.
        origins: node of the target -> node of the source that does the same on operands of the
            same types, for ``SpmdGraph.with_graph``.
    """

    target: fx.Graph = field(default_factory=fx.Graph)
    values: dict[fx.Node, fx.Node] = field(default_factory=dict)
    origins: dict[fx.Node, fx.Node] = field(default_factory=dict)

    def add(self, node: fx.Node, operand: Callable[[fx.Node], fx.Node] | None = None) -> fx.Node:
        """Copy ``node``; ``operand`` maps what it reads, by default to ``values``."""
        copy = self.target.node_copy(node, operand or self.values.__getitem__)
        self.values[node], self.origins[copy] = copy, node
        return copy

    def add_all(self, nodes: Iterable[fx.Node]) -> None:
        """Copy ``nodes``, which read nothing but each other, in order."""
        for node in nodes:
            self.add(node)

    def add_recomputed(self, node: fx.Node, operand: Callable[[fx.Node], fx.Node]) -> fx.Node:
        """Copy ``node`` on operands that may be laid out otherwise; its own layout follows."""
        copy = self.add(node, operand)
        if not all(same_layout(x, operand(x)) for x in node.all_input_nodes):
            del self.origins[copy]
            evaluate(copy)
        return copy
