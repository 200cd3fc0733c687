"""Graphs that send rows to experts, with all rows gathered and scattered in the place of that.

``dispatch_rows`` and ``combine_rows`` are an all_gather and a reduce_scatter to what is computed
between them if that treats rows alike, gives zero for rows of which a rank owns no id, and is all
that reads the rows received. This is shown of the graph with the rows gathered
(``compiler.check.row_ownership``), and that the ids are those by which rows are sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from compiler.check.row_ownership import owners
from compiler.check.verdict import UnprovedError
from compiler.ir import access
from compiler.ir.decompositions import gathered_rows, scattered_rows
from compiler.ir.dispatch import COMBINE_ROWS, DISPATCH_ROWS
from compiler.ir.graph import SpmdGraph
from compiler.ir.rules.meaning import size_key


@dataclass(frozen=True)
class _Exchange:
    """Rows sent, what is computed from them, and what is sent back.

    Attributes:
        dispatch: sends rows.
        combine: sends back what was computed, and adds it up.
        inner: what depends on the rows received, sizes too, but on nothing sent back.
    """

    dispatch: fx.Node
    combine: fx.Node
    inner: tuple[fx.Node, ...]

    @property
    def sent(self) -> dict[str, Any]:
        """Arguments of the first call."""
        return access.written_arguments(self.dispatch)

    @property
    def partial(self) -> fx.Node:
        """What is sent back."""
        return access.operands(self.combine)[0]


def with_gathered_rows(graph: SpmdGraph) -> SpmdGraph:
    """Return ``graph`` with collectives for the ops that send rows; itself if it calls none.

    Raises:
        UnprovedError: what is computed between the two is not shown to allow that.
    """
    calls = [n for n in graph.graph.nodes if n.target in (DISPATCH_ROWS, COMBINE_ROWS)]
    if not calls:
        return graph
    exchanges = {c: _exchange(graph, c) for c in calls if c.target is COMBINE_ROWS}
    if {e.dispatch for e in exchanges.values()} != {c for c in calls if c not in exchanges}:
        raise UnprovedError("rows are sent that nobody sends back")
    target, values, origins = fx.Graph(), dict[fx.Node, fx.Node](), dict[fx.Node, fx.Node]()
    received: dict[fx.Node, tuple[fx.Node, ...]] = {}
    for node in graph.graph.nodes:
        if node.target is DISPATCH_ROWS:
            written = tuple(access.written_arguments(node).values())
            received[node] = gathered_rows(*fx.node.map_arg(written, values.__getitem__))
        elif node in exchanges:
            first, group = (exchanges[node].sent[name] for name in ("first", "group_name"))
            values[node] = scattered_rows(values[exchanges[node].partial], len(first), group)
            values[node].meta = dict(node.meta)
        elif (call := next(iter(node.all_input_nodes), None)) in received:
            if (index := access.projection(node) or 0) < len(received[call]):
                values[node] = received[call][index]
                values[node].meta = dict(node.meta)
        else:
            values[node] = target.node_copy(node, values.__getitem__)
            origins[values[node]] = node
    made = graph.with_graph(target, origins)
    for exchange in exchanges.values():
        _check_owners(made, exchange, received[exchange.dispatch], values)
    return made


def _exchange(graph: SpmdGraph, combine: fx.Node) -> _Exchange:
    """The exchange that ``combine`` ends."""
    read = access.written_arguments(combine)
    (dispatch,) = access.operands(read["places"])[:1] or (combine,)
    if dispatch.target is not DISPATCH_ROWS:
        raise UnprovedError(f"%{combine.name} does not send back what dispatch_rows sent")
    sent = access.written_arguments(dispatch)
    count = len(sent["rows"])
    picked = {user: access.projection(user) for user in dispatch.users}
    ends = {count: read["places"], count + 1: read["counts"]}
    inner = dict.fromkeys(user for user, i in picked.items() if i in range(count))
    for user, i in picked.items():
        is_end = i is not None and ends.get(i) is user and set(user.users) == {combine}
        if user not in inner and not is_end:
            raise UnprovedError(f"%{user.name} reads where the rows of %{dispatch.name} go")
    for node in graph.graph.nodes:
        if node is not combine and any(x in inner for x in node.all_input_nodes):
            inner[node] = None
    leaving = [x for x in combine.all_input_nodes if x in inner]
    nested = any(n.op == "output" or n.target in (DISPATCH_ROWS, COMBINE_ROWS) for n in inner)
    if nested or leaving != [read["partial"]] or read["group_name"] != sent["group_name"]:
        raise UnprovedError(f"rows that %{dispatch.name} receives are read beside %{combine.name}")
    return _Exchange(dispatch, combine, tuple(inner))


def _check_owners(
    graph: SpmdGraph,
    exchange: _Exchange,
    received: tuple[fx.Node, ...],
    values: dict[fx.Node, fx.Node],
) -> None:
    """Raise UnprovedError unless each rank needs the rows that it is sent, and no others.

    Args:
        graph: with the rows gathered.
        exchange: in the graph before.
        received: rows gathered.
        values: node of the graph before -> the same here.
    """
    sent, leading = exchange.sent, exchange.inner[: exchange.inner.index(exchange.partial) + 1]
    region = [values[n] for n in leading if access.is_operand(n) and values[n] not in received]
    groups = graph.mesh.group(sent["group_name"])
    shown = owners(graph, groups, received, region)
    if isinstance(shown, str):
        raise UnprovedError(f"rows may not be sent by %{exchange.dispatch.name}: {shown}")
    ids = received[sent["rows"].index(sent["ids"])] if sent["ids"] in sent["rows"] else None
    if (shown.ids, [*shown.first], [*shown.end]) != (ids, [*sent["first"]], [*sent["end"]]):
        raise UnprovedError(f"%{exchange.dispatch.name} sends rows by other ids than ranks own")
    symbols: set[Any] = getattr(size_key(access.shape(received[0])[0]), "free_symbols", set())
    for node in exchange.inner:
        for x in node.all_input_nodes:
            size = size_key(x.meta.get("val"))
            counts = not access.is_operand(x) and symbols & getattr(size, "free_symbols", set())
            if counts and x not in exchange.inner:
                raise UnprovedError(f"%{node.name} reads %{x.name}, a number of other rows")
