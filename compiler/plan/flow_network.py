"""Minimum cuts of labelings: every node gets one of two labels, at the least cost.

    cost = sum of what nodes pay for their label
         + capacity of every edge that runs from a node on the source side to one on the sink side

Graphs of models are long and thin. A node with at most two neighbours is eliminated: its best label
is a function of theirs, whose cost is again that of labels and one edge, because minimizing keeps
such costs submodular. What is left is cut by networkx. All is exact: costs are integers.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass, field

import networkx as nx

NEVER = 1 << 160
"""Capacity of an edge that no cut may cross; more than all others together."""

SOURCE, SINK = "source side", "sink side"


@dataclass
class FlowNetwork:
    """A labeling problem. Costs may be negative, capacities not.

    Attributes:
        sides: node -> what it pays on the source side, and on the sink side.
        edges: from -> to -> capacity; every node has an entry.
        incoming: to -> from -> capacity, the same edges.
    """

    sides: dict[Hashable, list[int]] = field(default_factory=dict)
    edges: dict[Hashable, dict[Hashable, int]] = field(default_factory=dict)
    incoming: dict[Hashable, dict[Hashable, int]] = field(default_factory=dict)

    def add_node_cost(self, node: Hashable, *, source: int = 0, sink: int = 0) -> None:
        """Adds to what ``node`` pays for its label."""
        sides = self.sides.get(node)
        if sides is None:
            self.edges[node], self.incoming[node] = {}, {}
            sides = self.sides[node] = [0, 0]
        sides[0] += source
        sides[1] += sink

    def connect(self, start: Hashable, end: Hashable, capacity: int = NEVER) -> None:
        """Adds to what it costs to have ``start`` on the source side and ``end`` on the other."""
        assert capacity >= 0, "the cost is not submodular"
        for node in (start, end):
            if node not in self.sides:
                self.add_node_cost(node)
        if capacity and start != end:
            self.edges[start][end] = self.edges[start].get(end, 0) + capacity
            self.incoming[end][start] = self.edges[start][end]

    def prefer_sink(self, nodes: Collection[Hashable]) -> None:
        """Of all least cuts, the one with most of ``nodes`` on the sink side is the least."""
        if not nodes:
            return
        scale = len(nodes) + 1
        for node, sides in self.sides.items():
            sides[:] = [scale * sides[0] + (node in nodes), scale * sides[1]]
        for edges in (*self.edges.values(), *self.incoming.values()):
            edges.update({end: scale * capacity for end, capacity in edges.items()})

    def sink_side(self) -> set[Hashable]:
        """The nodes on the sink side of the least cut, as few of them as any least cut has.

        Uses the network up.
        """
        order: list[tuple[Hashable, list[int], list[tuple[Hashable, int, int]]]] = []
        queue = [n for n in self.sides if self._degree(n) <= 2]
        while queue:
            node = queue.pop()
            if node in self.sides and self._degree(node) <= 2:
                near = self._neighbours(node)
                order.append((node, self.sides[node], near))
                self._eliminate(node, near)
                queue += [other for other, _, _ in near if self._degree(other) <= 2]
        sink_side = self._cut()
        for node, (source, sink), near in reversed(order):
            for other, to_other, from_other in near:
                if other in sink_side:
                    source += to_other
                else:
                    sink += from_other
            if sink < source:
                sink_side.add(node)
        return sink_side

    def _degree(self, node: Hashable) -> int:
        outgoing, incoming = self.edges[node], self.incoming[node]
        if not incoming or not outgoing:
            return len(outgoing) + len(incoming)
        return len(outgoing.keys() | incoming.keys())

    def _neighbours(self, node: Hashable) -> list[tuple[Hashable, int, int]]:
        """Each with the capacity of the edge to it and of that from it."""
        outgoing, incoming = self.edges[node], self.incoming[node]
        return [(x, outgoing.get(x, 0), incoming.get(x, 0)) for x in {**outgoing, **incoming}]

    def _eliminate(self, node: Hashable, near: list[tuple[Hashable, int, int]]) -> None:
        """Replaces the node by what its best label costs its neighbours."""
        source, sink = self.sides.pop(node)
        for other, _, _ in near:
            self.edges[other].pop(node, None)
            self.incoming[other].pop(node, None)
        del self.edges[node], self.incoming[node]

        # The cost of the best label, given which neighbours are on the sink side.
        if len(near) == 1:
            ((other_node, to_other, from_other),) = near
            self.add_node_cost(other_node, source=min(source, sink + from_other),
                     sink=min(source + to_other, sink))  # fmt: skip
        elif len(near) == 2:
            (first, to_first, from_first), (second, to_second, from_second) = near
            neither = min(source, sink + from_first + from_second)
            both = min(source + to_first + to_second, sink)
            one = min(source + to_first, sink + from_second)
            other = min(source + to_second, sink + from_first)
            self.add_node_cost(first, source=neither, sink=one)
            self.add_node_cost(second, sink=both - one)
            self.connect(first, second, one + other - neither - both)

    def _cut(self) -> set[Hashable]:
        """The sink side of what is left."""
        network: nx.DiGraph[Hashable] = nx.DiGraph()
        network.add_nodes_from((SOURCE, SINK))
        for node, (source, sink) in self.sides.items():
            if sink > source:
                network.add_edge(SOURCE, node, capacity=sink - source)
            else:
                network.add_edge(node, SINK, capacity=source - sink)
            for end, capacity in self.edges[node].items():
                network.add_edge(node, end, capacity=capacity)
        if not self.sides:
            return set()
        _, (_, reached) = nx.minimum_cut(network, SOURCE, SINK)
        return set(reached) - {SINK}
