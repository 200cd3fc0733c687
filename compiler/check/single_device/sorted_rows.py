"""Grouped products of rows sorted by expert, as products of every row with its own expert's matrix.

    order = argsort(e)                           rows by their experts e
    x[order // k], x[order]                      tokens of sorted entries, sorted entries
    ends = searchsorted(e[order], 0 … n - 1)     where the rows of each expert end
    grouped product of sorted rows with ends     row i times the matrix of expert e[order[i]]
    y[argsort(order)]                            the rows in their own order again
    zeros.scatter(0, order, 0 … rows - 1)        argsort(order), for every place is written once

Ops between that treat rows one by one do not see their order. So without sorting this is
``repeat_interleave(x, k)``, or x, and ``x[i] @ w[e[i]]``. Rows of experts that are not there stay
undefined: a lookup outside of a table is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from compiler.check.row_ownership import ARGSORT, GROUPED
from compiler.check.single_device.factors import factors_of
from compiler.ir import access
from compiler.ir.graph import SpmdGraph
from compiler.ir.rules import Call
from compiler.ir.rules.meaning import shape_key

aten = torch.ops.aten
SCATTER = aten.scatter.src


class _Refused(Exception):  # noqa: N818 - a reason, not an error
    """Sorted rows are read otherwise."""


def with_rows_in_order(graph: SpmdGraph) -> SpmdGraph:
    """Return a graph without sorted rows; itself where it has none, or reads them otherwise."""
    if not any(node.target in GROUPED for node in graph.graph.nodes):
        return graph
    try:
        return _Unsorted(graph).result()
    except _Refused:
        return graph


class _Unsorted:
    """Writes a graph without sorting.

    Attributes:
        target: where it is written.
        values: node -> the same there; sorted rows in their own order.
        orders: node of sorted rows -> the argsort that sorted them.
        roles: "order", "inverse", "tokens", "ends" or "blank" (zeros of its size) of an argsort ->
            that argsort.
    """

    def __init__(self, graph: SpmdGraph) -> None:
        self.graph, self.target = graph, fx.Graph()
        self.values: dict[fx.Node, fx.Node] = {}
        self.orders: dict[fx.Node, fx.Node] = {}
        self.roles: dict[fx.Node, tuple[str, fx.Node]] = {}
        self.copies: dict[fx.Node, fx.Node] = {}

    def result(self) -> SpmdGraph:
        """Return the graph."""
        for node in self.graph.graph.nodes:
            if node.op == "output" and any(x in self.orders or x in self.roles
                                           for x in access.results(node)):  # fmt: skip
                raise _Refused
            if node.op != "call_function" or not self._written(node):
                self.values[node] = self.target.node_copy(node, self.values.__getitem__)
                self.copies[self.values[node]] = node
        return self.graph.with_graph(self.target, self.copies) if self.orders else self.graph

    def _written(self, node: fx.Node) -> bool:
        """Whether a call is about sorted rows, and was written without sorting."""
        read = access.operands(node)
        if node.target in ARGSORT and self._sorts_experts(node):
            self.roles[node] = "order", node
            return True
        roles = [self.roles[x] for x in read if x in self.roles]
        orders = {self.orders[x] for x in read if x in self.orders}
        if not roles and not orders:
            return False
        if node.target in ARGSORT and roles:
            self._role(node, "inverse", "order")
        elif node.target is aten.zeros_like.default:
            self._role(node, "blank", "order")
        elif node.target is SCATTER:
            self._scattered(node)
        elif node.target is aten.floor_divide.default and len(read) == 1:
            self._role(node, "tokens", "order")
        elif node.target is aten.searchsorted.Tensor:
            self._ends(node)
        elif node.target is aten.index.Tensor and roles:
            self._indexed(node)
        elif node.target in GROUPED:
            self._grouped(node)
        else:
            self._row_by_row(node, orders)
        return True

    def _sorts_experts(self, node: fx.Node) -> bool:
        """Whether rows sorted so are given to a grouped product."""
        one, (source,) = len(access.shape(node)) == 1, access.operands(node)
        plain = not access.arguments(node).get("descending") and source not in self.roles
        return plain and one and any(user.target in (*ARGSORT, SCATTER) for user in node.users)

    def _role(self, node: fx.Node, role: str, of: str) -> None:
        own, order = self.roles.get(access.operands(node)[0], ("", node))
        if own != of or access.arguments(node).get("descending"):
            raise _Refused
        self.roles[node] = role, order

    def _scattered(self, node: fx.Node) -> None:
        blank, order, numbers = access.operands(node)
        sizes = {shape_key(access.tensor(x)) for x in (blank, order, numbers)}
        counted = numbers.target is aten.arange.default and len(sizes) == 1
        if not counted or self.roles.get(order) != ("order", order):
            raise _Refused
        self._role(node, "inverse", "blank")

    def _ends(self, node: fx.Node) -> None:
        arguments, read = access.arguments(node), access.operands(node)
        order = self.orders.get(read[0])
        counted = access.arguments(read[1]) if read[1].target is aten.arange.default else {}
        right = arguments.get("right") or arguments.get("side") == "right"
        plain = order is not None and len(read) == 2 and right and "end" in counted
        if not plain or self.values[read[0]] is not self.values[access.operands(order)[0]]:  # type: ignore[arg-type]
            raise _Refused
        self.roles[node] = "ends", order  # type: ignore[assignment]

    def _indexed(self, node: fx.Node) -> None:
        written, read = access.written_arguments(node), access.operands(node)
        if len(written["indices"]) != 1 or len(read) != 2 or read[1] not in self.roles:
            raise _Refused
        (role, order), entries = self.roles[read[1]], shape_key(access.tensor(read[1]))[0]
        rows, source = shape_key(access.tensor(read[0]))[0], self.values[read[0]]
        sorted_by = self.orders.get(read[0])
        if role == "inverse" and sorted_by is order:
            self.values[node] = source
        elif sorted_by is None and role == "order" and rows == entries:
            self.values[node], self.orders[node] = source, order
        elif sorted_by is None and role == "tokens":
            count = access.arguments(read[1])["other"]
            if type(count) is not int or rows * count != entries:
                raise _Refused
            repeat = aten.repeat_interleave.self_int
            self.values[node] = self._call(node, repeat, source, count, 0)
            self.orders[node] = order
        else:
            raise _Refused

    def _grouped(self, node: fx.Node) -> None:
        written = access.written_arguments(node)
        names = list(written)
        rows, table, ends = written[names[0]], written[names[1]], written["offs"]
        order = self.orders.get(rows)
        shapes = len(access.shape(rows)), len(access.shape(table))
        same = order is not None and self.roles.get(ends) == ("ends", order)
        if not same or shapes != (2, 3) or written.get("bias") is not None:
            raise _Refused
        experts = self.values[access.operands(order)[0]]  # type: ignore[arg-type]
        n, (_, k, m) = access.shape(rows)[0], access.shape(table)
        like = access.tensor(node)
        own = self._call(node, aten.index.Tensor, self.values[table], [experts])
        own.meta["val"] = like.new_empty((n, k, m))
        row = self._call(node, aten.unsqueeze.default, self.values[rows], 1)
        row.meta["val"] = like.new_empty((n, 1, k))
        product = self._call(node, aten.bmm.default, row, own)
        product.meta["val"] = like.new_empty((n, 1, m))
        self.values[node] = self._call(node, aten.squeeze.dim, product, 1)
        self.orders[node] = order  # type: ignore[assignment]

    def _row_by_row(self, node: fx.Node, orders: set[fx.Node]) -> None:
        """Copy a call that treats sorted rows alike, all of one order."""
        read, factors = access.operands(node), factors_of(Call.of(node))
        if len(orders) != 1 or factors is None or any(x in self.roles for x in read):
            raise _Refused
        for x, labels in zip(read, factors.operands, strict=True):
            if x in self.orders and labels[0] is None:
                raise _Refused
            first = factors.operands[read.index(next(y for y in read if y in self.orders))][0]
            if (x in self.orders) is not (first in labels[:1]) or first in labels[1:]:
                raise _Refused
            if any(own[:1] != (first,) for own in factors.results):
                raise _Refused
        self.values[node] = self.target.node_copy(node, self.values.__getitem__)
        self.copies[self.values[node]] = node
        self.orders[node] = orders.pop()

    def _call(self, like: fx.Node, op: Any, *arguments: Any) -> fx.Node:
        node = self.target.call_function(op, arguments)
        node.meta = dict(like.meta)
        return node
