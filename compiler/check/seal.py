"""A function that values of two graphs are put through, so that proofs come in parts.

Nothing is known of the function but that it keeps what it gave. Outputs that are equal whatever it
is are equal for the identity: two graphs that agree when some values of either are sealed agree as
they are, whichever these values are. Sealed is what both compute and all later values go by: what
is proved after it no longer speaks of sums before it, so that fewer ranks decide
(``docs/ranks.md``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import fx

from compiler.check import algebra
from compiler.check.algebra import Field
from compiler.check.blocks import Value
from compiler.ir.graph import SpmdGraph

Values = Mapping[fx.Node, Value]
Rows = frozenset[bytes]
"""The vectors of a value, on whatever ranks and in whatever blocks."""


class Seal:
    """A function of vectors, drawn at random but for what it gave before: that it keeps.

    Args:
        nodes: whose values are put through it, of any graph.
    """

    def __init__(self, nodes: Iterable[fx.Node]) -> None:
        self.nodes = frozenset(nodes)
        self._sealed: set[bytes] = set()

    def __call__(self, x: Field) -> Field:
        """Return the function of every vector of ``x``."""
        rows = algebra.vectors(x)
        keys = [[row if row in self._sealed else b"seal|" + row for row in rank] for rank in rows]
        return algebra.per_key(keys, self._one)

    def _one(self, key: bytes) -> Field:
        if key in self._sealed:
            return algebra.vector(key)
        sealed: Field = algebra.random_vectors([[key]])[0, 0]
        self._sealed.add(sealed.tobytes())
        return sealed


def narrow_values(graphs: Iterable[tuple[SpmdGraph, Values]]) -> list[fx.Node]:
    """Return what all later values of each of ``graphs``, as interpreted, go by, if all have it."""
    narrow = [dict(_narrow(graph, values)) for graph, values in graphs]
    common = set.intersection(*(set(rows.values()) for rows in narrow))
    return [node for rows in narrow for node, own in rows.items() if own in common]


def _narrow(graph: SpmdGraph, values: Values) -> Iterator[tuple[fx.Node, Rows]]:
    """Yield values with sums over ranks, where no others of such are read later."""
    order = {node: i for i, node in enumerate(graph.graph.nodes)}
    last = {
        node: max((order[user] for user in node.users if user.op != "output"), default=-1)
        for node in values
    }
    rows = {
        node: frozenset(row for rank in algebra.vectors(value.data) for row in rank)
        for node, value in values.items()
        if any(value.sums) and last[node] > order[node]
    }
    alive: set[fx.Node] = set()
    for node in graph.graph.nodes:
        alive = {x for x in alive if last[x] > order[node]}
        if node in rows:
            alive.add(node)
        if len({rows[x] for x in alive}) == 1:
            yield from ((x, rows[x]) for x in alive)
