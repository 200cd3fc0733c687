"""Graphs in few ops: moves and products that have many names, each by its definition.

    split(x)[i], chunk(x)[i]       slice(x)
    x[i], unbind(x)[i]             a view of slice(x)
    stack(xs)                      cat of views of xs
    slice_scatter, select_scatter  cat of what stays and what is written
    constant_pad(x, c)             cat of x and constants
    repeat, repeat_interleave      a view of expand(a view of x)
    mm, linear, einsum, …          sum(x * y), views of x and y broadcast against each other
    sum(x, dims), mean(x, dims)    sums over one dimension each, the last first; / n
    relu(x), clamp_min(x, 0)       clamp(x, 0)
    embedding(x, i), x[i]          a view of index_select(x, 0, a view of i)
    all_to_all(x)                  this rank's blocks of all_gather(x)
    all_slice(x)                   slice(x), which begins at another row on every rank

Each holds for all operands of the types for which it is written, so a graph and its form compute
the same function over the reals. Sizes along the dimensions concerned must be numbers; calls with
others stay as they are. Products are written with the dimensions in an order that all operands
have where one of these has all of them; otherwise operands are permuted, the dimensions that are
summed over last. Dimensions that stand together everywhere are one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from math import prod
from typing import Any

import torch
from torch import fx

from compiler.check.form_writer import FormWriter
from compiler.check.primitive_products import product, summed
from compiler.check.single_device.factors import SPLITS, VIEWS
from compiler.ir import access
from compiler.ir.collectives import WAIT, Kind, collective, insert
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import ReplicaGroups
from compiler.ir.row_ops import all_slice, resized
from compiler.ir.rules import Call, meaning_of
from compiler.ir.rules.contraction import RULES as PRODUCTS

aten = torch.ops.aten


def primitive_form(graph: SpmdGraph) -> SpmdGraph:
    """Return the same function over the reals, written in the ops of the right column."""
    form = _Form(graph)
    for node in graph.graph.nodes:
        write = None if access.rank_constants(node) else _WRITERS.get(node.target)
        written = form.of_pieces(node) if write is None else write(form, node)
        if written is None:
            written = form.target.node_copy(node, form.values.__getitem__)
            written.meta = dict(node.meta)
        form.values[node] = written
    return SpmdGraph(graph.root, form.target, graph.mesh, graph.inputs)


class _Form(FormWriter):
    """A writer returns None where its identity says nothing."""

    # -- moves ---------------------------------------------------------------------------------

    def viewed(self, node: fx.Node) -> fx.Node:
        """Write any view as one of sizes."""
        return self.view(self.values[access.operands(node)[0]], access.shape(node))

    def of_pieces(self, node: fx.Node) -> fx.Node | None:
        """Write one result of a split or unbind."""
        index = access.projection(node)
        split = access.computed_by(node)
        one = split.target is aten.unbind.int
        if index is None or not (one or split.target in SPLITS) or access.rank_constants(split):
            return None
        x = self.values[access.operands(split)[0]]
        dim = int(access.arguments(split).get("dim", 0)) % len(access.shape(x))
        sizes = [1 if one else t.shape[dim] for t in access.value(split)]
        if not all(type(n) is int for n in (*sizes, access.shape(x)[dim])):
            return None
        ends = list(accumulate(sizes))
        return self.view(
            self.slice(x, dim, ends[index] - sizes[index], ends[index]), access.shape(node)
        )

    def select(self, node: fx.Node) -> fx.Node | None:
        """Write one index of a dimension."""
        arguments, x = self.arguments(node), self.values[access.operands(node)[0]]
        dim, index = int(arguments["dim"]) % len(access.shape(x)), arguments["index"]
        size = access.shape(x)[dim]
        if type(size) is not int or type(index) is not int:
            return None
        return self.view(self.slice(x, dim, index % size, index % size + 1), access.shape(node))

    def stack(self, node: fx.Node) -> fx.Node:
        """Write tensors joined along a dimension of their own."""
        arguments = self.arguments(node)
        dim = int(arguments["dim"]) % len(access.shape(node))
        one = resized(access.tensor(node), dim, 1).shape
        return self.cat([self.view(x, one) for x in arguments["tensors"]], dim)

    def written(self, node: fx.Node) -> fx.Node | None:
        """Write a tensor with a range, or one index, of a dimension replaced."""
        arguments, shape = self.arguments(node), access.shape(node)
        x, source = self.values[access.operands(node)[0]], arguments["src"]
        dim = int(arguments["dim"]) % len(shape)
        limits = [arguments.get("start"), arguments.get("end")]
        if (index := arguments.get("index")) is not None:
            limits = [index, index + 1 or None]
        size, plain = shape[dim], all(x is None or type(x) is int for x in limits)
        if not plain or type(size) is not int or arguments.get("step", 1) != 1:
            return None
        if access.dtype(source) is not access.dtype(node):
            return None
        taken = range(size)[slice(*limits)]
        if not len(taken):
            return x
        one = self.view(source, resized(access.tensor(node), dim, len(taken)).shape)
        before, after = self.slice(x, dim, 0, taken.start), self.slice(x, dim, taken.stop, size)
        return self.cat([before, one, after], dim)

    def padded(self, node: fx.Node) -> fx.Node | None:
        """Write a tensor with constants before and behind it; cut off where widths are negative."""
        arguments, x = self.arguments(node), self.values[access.operands(node)[0]]
        widths, value = arguments["pad"], arguments.get("value") or 0
        plain = all(type(n) is int for n in widths) and isinstance(value, int | float)
        if arguments.get("mode", "constant") != "constant" or not plain:
            return None
        for i in range(len(widths) // 2):
            dim, size = len(access.shape(x)) - 1 - i, access.shape(x)[len(access.shape(x)) - 1 - i]
            low, high = widths[2 * i : 2 * i + 2]
            if (low, high) == (0, 0):
                continue
            if type(size) is not int or size + min(low, 0) + min(high, 0) <= 0:
                return None
            x = self.slice(x, dim, max(-low, 0), size - max(-high, 0))
            ends = [resized(access.tensor(x), dim, max(n, 0)).shape for n in (low, high)]
            first, last = (
                self.call(aten.new_full.default, access.tensor(x), sizes, x, list(sizes), value)
                for sizes in ends
            )
            x = self.cat([first, x, last], dim)
        return x

    def repeated(self, node: fx.Node) -> fx.Node | None:
        """Write a tensor whose rows, or all of which, come several times."""
        arguments, x = self.arguments(node), self.values[access.operands(node)[0]]
        sizes: list[Any] = list(access.shape(x))
        times = arguments["repeats"]
        if node.target is aten.repeat.default:
            sizes = [1] * (len(times) - len(sizes)) + sizes
            ones = [n for size in sizes for n in (1, size)]
            more = [n for pair in zip(times, sizes, strict=True) for n in pair]
        else:
            if (dim := arguments["dim"]) is None:
                return None
            dim %= len(sizes)
            ones = [*sizes[: dim + 1], 1, *sizes[dim + 1 :]]
            more = [*sizes[: dim + 1], times, *sizes[dim + 1 :]]
        if not all(type(n) is int for n in more):
            return None
        stretched = self.view(x, ones)
        if ones != more:
            stretched = self.call(aten.expand.default, access.tensor(x), more, stretched, more)
        return self.view(stretched, access.shape(node))

    def turned(self, node: fx.Node) -> fx.Node | None:
        """Write any transposition as a permutation."""
        order = _order(node)
        return (
            None if order is None else self.permuted(self.values[access.operands(node)[0]], order)
        )

    # -- names -------------------------------------------------------------------------------------

    def clamped(self, node: fx.Node) -> fx.Node:
        """Write a relu, or a lower or upper bound alone, as a clamp."""
        arguments, x = self.arguments(node), self.values[access.operands(node)[0]]
        low = 0 if node.target is aten.relu.default else arguments.get("min")
        return self.call(
            aten.clamp.default, access.tensor(x), access.shape(x), x, low, arguments.get("max")
        )

    def looked_up(self, node: fx.Node) -> fx.Node | None:
        """Write rows of a table by numbers as ``index_select`` by a list of them."""
        arguments, read = self.arguments(node), [self.values[x] for x in access.operands(node)]
        several = node.target is aten.index.Tensor and len(arguments["indices"]) != 1
        if several or len(read) != 2:
            return None
        table, numbers = read
        if access.dtype(numbers) not in (torch.int32, torch.int64):
            return None
        rest, count = access.shape(table)[1:], prod(access.shape(numbers))
        flat = self.view(numbers, [count])
        rows = self.call(
            aten.index_select.default, access.tensor(table), [count, *rest], table, 0, flat
        )
        return self.view(rows, access.shape(node))

    # -- rows of ranks -----------------------------------------------------------------------------

    def exchanged(self, node: fx.Node) -> fx.Node | None:
        """Write an all_to_all of as many rows to every rank as gathered rows of which some stay."""
        exchange = collective(node)
        assert exchange is not None, "it is a collective"
        groups = self.source.mesh.group(exchange.group)
        x, n, arguments = self.values[exchange.operand], groups.axis_size, access.arguments(node)
        rows, *rest = access.shape(x)
        splits = {tuple(arguments[k]) for k in ("input_split_sizes", "output_split_sizes")}
        if type(rows) is not int or splits != {(rows // n,) * n} or rows % n:
            return None
        gives = resized(access.tensor(x), 0, rows * n)
        whole = insert(Kind.ALL_GATHER, x, exchange.group, ranks=n, gives=gives)
        own = self.own_rows(self.view(whole, [n, n, rows // n, *rest]), 1, groups)
        return self.view(own, [rows, *rest])

    def own_rows(self, x: fx.Node, dim: int, groups: ReplicaGroups) -> fx.Node:
        """Write this rank's block of the rows along a dimension, by its position in its group."""
        count = int(access.shape(x)[dim]) // groups.axis_size
        starts = tuple(groups.position[r] * count for r in range(self.source.mesh.size))
        sizes = resized(access.tensor(x), dim, count).shape
        start = access.RankInt(starts[0], starts)
        return self.call(aten.narrow.default, access.tensor(x), sizes, x, dim, start, count)

    def own_share(self, node: fx.Node) -> fx.Node | None:
        """Write an all_slice of rows that the ranks divide."""
        own = all_slice(node)
        assert own is not None, "it is an all_slice"
        x, rows = self.values[own.operand], access.shape(own.operand)[own.dim]
        if type(rows) is not int or rows % own.group_size:
            return None
        return self.own_rows(x, own.dim, self.source.mesh.group(own.group))

    def waited(self, node: fx.Node) -> fx.Node | None:
        """Leave out the wait for a collective that is written otherwise."""
        started = self.values[access.operands(node)[0]]
        return started if collective(started) is None or started.target is WAIT else None


def _order(node: fx.Node) -> Sequence[int] | None:
    """Return the dimension of the operand that each one of the result is; None for other calls."""
    rule = meaning_of(Call.of(node)) if node.op == "call_function" else None
    key = rule.terms[0].map if rule is not None and rule.terms else None
    return key[1] if isinstance(key, tuple) and key[0] == "permute" else None


Writer = Callable[[_Form, fx.Node], fx.Node | None]
_WRITERS: Mapping[object, Writer] = {
    **dict.fromkeys(PRODUCTS, product),
    **dict.fromkeys(
        (
            aten.permute.default,
            aten.t.default,
            aten.transpose.int,
            aten.swapdims.default,
            aten.mT.default,
            aten.numpy_T.default,
        ),
        _Form.turned,
    ),
    **dict.fromkeys(VIEWS, _Form.viewed),
    aten.select.int: _Form.select,
    aten.stack.default: _Form.stack,
    aten.slice_scatter.default: _Form.written,
    aten.select_scatter.default: _Form.written,
    aten.constant_pad_nd.default: _Form.padded,
    aten.pad.default: _Form.padded,
    aten.repeat.default: _Form.repeated,
    aten.repeat_interleave.self_int: _Form.repeated,
    aten.sum.default: summed,
    aten.sum.dim_IntList: summed,
    aten.mean.default: summed,
    aten.mean.dim: summed,
    torch.ops._c10d_functional.all_to_all_single.default: _Form.exchanged,
    torch.ops.commplan.all_slice.default: _Form.own_share,
    WAIT: _Form.waited,
    **dict.fromkeys(
        (aten.relu.default, aten.clamp_min.default, aten.clamp_max.default), _Form.clamped
    ),
    aten.embedding.default: _Form.looked_up,
    aten.index.Tensor: _Form.looked_up,
}
"""Op -> what writes its calls in the form."""
