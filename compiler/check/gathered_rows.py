"""Graphs that send rows to experts, with all rows gathered and scattered in the place of that.

``dispatch_rows`` and ``combine_rows`` are an all_gather and a reduce_scatter to what is computed
between them if that treats rows alike, gives zero for rows of which a rank owns no id, and is all
that reads the rows received. This is shown of the graph with the rows gathered
(``compiler.check.row_ownership``), and that the ids are those by which rows are sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from compiler.check.expand import expanded
from compiler.check.row_ownership import owners
from compiler.check.verdict import UnprovedError
from compiler.ir import access
from compiler.ir.decompositions import ROWS
from compiler.ir.dispatch import COMBINE_ROWS, DISPATCH_ROWS
from compiler.ir.graph import SpmdGraph
from compiler.ir.rules.meaning import size_key


@dataclass(frozen=True)
class _Exchange:
    """Rows sent, and what is computed from them.

    Attributes:
        dispatch: sends rows.
        received: rows received -> which of those sent they are.
        inner: what depends on them, sizes too, but on nothing sent back.
        partial: what is sent back.
    """

    dispatch: fx.Node
    received: Mapping[fx.Node, int]
    inner: tuple[fx.Node, ...]
    partial: fx.Node


def with_gathered_rows(graph: SpmdGraph) -> SpmdGraph:
    """Return ``graph`` with collectives for the ops that send rows; itself if it calls none.

    Raises:
        UnprovedError: what is computed between the two is not shown to allow that.
    """
    calls = {op: [n for n in graph.graph.nodes if n.target is op] for op in ROWS}
    exchanges = [_exchange(graph, combine) for combine in calls[COMBINE_ROWS]]
    if {e.dispatch for e in exchanges} != set(calls[DISPATCH_ROWS]):
        raise UnprovedError("rows are sent that nobody sends back")
    gathered, values = expanded(graph, ROWS)
    for exchange in exchanges:
        _check_owners(gathered, exchange, values)
    return gathered


def _exchange(graph: SpmdGraph, combine: fx.Node) -> _Exchange:
    """Return the exchange that ``combine`` ends."""
    read = access.written_arguments(combine)
    (dispatch,) = access.operands(read["places"])[:1] or (combine,)
    if dispatch.target is not DISPATCH_ROWS:
        raise UnprovedError(f"%{combine.name} does not send back what dispatch_rows sent")
    sent = access.written_arguments(dispatch)
    count = len(sent["rows"])
    ends = {read["places"]: count, read["counts"]: count + 1}
    picked = {user: access.projection(user) for user in dispatch.users}
    received = {user: i for user, i in picked.items() if i is not None and i in range(count)}
    for user in picked.keys() - received.keys():
        if picked[user] is None or ends.get(user) != picked[user] or set(user.users) != {combine}:
            raise UnprovedError(f"%{user.name} reads where the rows of %{dispatch.name} go")
    inner: dict[fx.Node, None] = {}
    for node in graph.graph.nodes:
        reads = any(x in received or x in inner for x in node.all_input_nodes)
        if node is not combine and reads:
            inner[node] = None
    leaving = [x for x in combine.all_input_nodes if x in received or x in inner]
    nested = any(n.op == "output" or n.target in (DISPATCH_ROWS, COMBINE_ROWS) for n in inner)
    if (
        nested
        or read["partial"] not in inner
        or leaving != [read["partial"]]
        or read["group_name"] != sent["group_name"]
    ):
        raise UnprovedError(f"rows that %{dispatch.name} receives are read beside %{combine.name}")
    return _Exchange(dispatch, received, tuple(inner), read["partial"])


def _check_owners(graph: SpmdGraph, exchange: _Exchange, values: Mapping[fx.Node, fx.Node]) -> None:
    """Raise UnprovedError unless each rank needs the rows that it is sent, and no others.

    Args:
        graph: with the rows gathered.
        exchange: in the graph before.
        values: node of the graph before -> the same here.
    """
    sent = access.written_arguments(exchange.dispatch)
    received = {i: values[n] for n, i in exchange.received.items()}
    leading = exchange.inner[: exchange.inner.index(exchange.partial) + 1]
    region = [values[n] for n in leading if access.is_operand(n)]
    groups = graph.mesh.group(sent["group_name"])
    shown = owners(graph, groups, [*received.values()], region)
    if isinstance(shown, str):
        raise UnprovedError(f"rows may not be sent by %{exchange.dispatch.name}: {shown}")
    ids = next((x for i, x in received.items() if sent["rows"][i] is sent["ids"]), None)
    if (shown.ids, [*shown.first], [*shown.end]) != (ids, [*sent["first"]], [*sent["end"]]):
        raise UnprovedError(f"%{exchange.dispatch.name} sends rows by other ids than ranks own")
    symbols: set[Any] = getattr(size_key(access.shape(exchange.partial)[0]), "free_symbols", set())
    for node in exchange.inner:
        for x in node.all_input_nodes:
            size = size_key(x.meta.get("val"))
            counts = not access.is_operand(x) and symbols & getattr(size, "free_symbols", set())
            if counts and x not in exchange.inner:
                raise UnprovedError(f"%{node.name} reads %{x.name}, a number of other rows")
