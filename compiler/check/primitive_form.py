"""Graphs in few ops: moves and products that have many names, each by its definition.

    split(x)[i], chunk(x)[i]       slice(x)
    x[i], unbind(x)[i]             a view of slice(x)
    stack(xs)                      cat of views of xs
    slice_scatter, select_scatter  cat of what stays and what is written
    constant_pad(x, c)             cat of x and constants
    repeat, repeat_interleave      a view of expand(a view of x)
    mm, linear, einsum, …          sum(x * y), views of x and y broadcast against each other
    sum(x, dims), mean(x, dims)    sums over one dimension each, the last first; / n
    all_to_all(x)                  this rank's blocks of all_gather(x)
    all_slice(x)                   slice(x), which begins at another row on every rank

Each holds for all operands of the types for which it is written, so a graph and its form compute
the same function over the reals. Sizes along the dimensions concerned must be numbers; calls with
others stay as they are. Products are written with the dimensions in an order that all operands
have; where there is none, operands are permuted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from math import prod
from typing import Any

import torch
from torch import fx

from compiler.check.single_device.factors import SPLITS
from compiler.ir import access
from compiler.ir.collectives import WAIT, Kind, collective, insert
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import ReplicaGroups
from compiler.ir.row_ops import all_slice, resized
from compiler.ir.rules import BROADCAST, Call, Term, meaning_of
from compiler.ir.rules.contraction import RULES as PRODUCTS

aten = torch.ops.aten
MUL, ADD, SLICE = aten.mul.Tensor, aten.add.Tensor, aten.slice.Tensor
VIEW = aten.reshape.default  # of any strides
SUM = aten.sum.dim_IntList


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


class _Form:
    """Writes calls in the form; a writer returns None where its identity says nothing.

    Attributes:
        source: the graph.
        target: where calls are written.
        values: node of the source -> what it is there.
    """

    def __init__(self, source: SpmdGraph) -> None:
        self.source, self.target = source, fx.Graph()
        self.values: dict[fx.Node, fx.Node] = {}

    def call(self, op: Any, like: torch.Tensor, sizes: Sequence[Any], *arguments: Any) -> fx.Node:
        """Write a call whose result is of the type of ``like``, and has ``sizes``."""
        node = self.target.call_function(op, arguments)
        node.meta["val"] = like.new_empty(tuple(sizes))
        return node

    def arguments(self, node: fx.Node) -> dict[str, Any]:
        """Return what a call reads, by name, operands in the form."""
        written = access.written_arguments(node)
        return {k: fx.node.map_arg(x, self.values.__getitem__) for k, x in written.items()}

    # -- moves ---------------------------------------------------------------------------------

    def view(self, x: fx.Node, sizes: Sequence[Any]) -> fx.Node:
        """Write a view."""
        if tuple(access.shape(x)) == tuple(sizes):
            return x
        # what is evaluated reads sizes from the metadata, and torch.fx wants none that are symbols
        written = [-1 if isinstance(size, torch.SymInt) else size for size in sizes]
        return self.call(VIEW, access.tensor(x), sizes, x, written)

    def slice(self, x: fx.Node, dim: int, start: int, end: int) -> fx.Node:
        """Write a range of one dimension."""
        if (start, end) == (0, access.shape(x)[dim]):
            return x
        sizes = resized(access.tensor(x), dim, end - start).shape
        return self.call(SLICE, access.tensor(x), sizes, x, dim, start, end)

    def cat(self, parts: Sequence[fx.Node], dim: int) -> fx.Node:
        """Write parts joined along a dimension, those without rows left out."""
        some = [x for x in parts if access.shape(x)[dim] != 0] or parts[:1]
        if len(some) == 1:
            return some[0]
        rows = sum(access.shape(x)[dim] for x in some)
        first = access.tensor(some[0])
        return self.call(aten.cat.default, first, resized(first, dim, rows).shape, list(some), dim)

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

    # -- sums and products -----------------------------------------------------------------------

    def summed(self, node: fx.Node) -> fx.Node | None:
        """Write a sum or mean over dimensions."""
        arguments, x = self.arguments(node), self.values[access.operands(node)[0]]
        if access.dtype(x) is not access.dtype(node) or not access.dtype(x).is_floating_point:
            return None
        rank, named = len(access.shape(x)), arguments.get("dim")
        many = [named] if isinstance(named, int) else named
        dims = sorted({d % rank for d in many} if many else range(rank))
        count = prod(n for d in dims if type(n := access.shape(x)[d]) is int)
        averages = node.target in (aten.mean.default, aten.mean.dim)
        if averages and (not count or any(type(access.shape(x)[d]) is not int for d in dims)):
            return None
        x = self.view(self.summed_over(x, dims), access.shape(node))
        return (
            self.call(aten.div.Tensor, access.tensor(x), x.meta["val"].shape, x, count)
            if (averages and count != 1)
            else x
        )

    def summed_over(self, x: fx.Node, dims: Sequence[int]) -> fx.Node:
        """Write sums over dimensions, which are gone; those of size one are views."""
        for dim in sorted(dims, reverse=True):
            sizes = [n for d, n in enumerate(access.shape(x)) if d != dim]
            if access.shape(x)[dim] == 1:
                x = self.view(x, sizes)
            else:
                x = self.call(SUM, access.tensor(x), sizes, x, [dim])
        return x

    def product(self, node: fx.Node) -> fx.Node | None:
        """Write a product with contracted dimensions, and what is added to it."""
        rule = meaning_of(Call.of(node))
        if rule is None or not rule.terms or not access.dtype(node).is_floating_point:
            return None
        if not all(t.map == BROADCAST or _is_einsum(t) for t in rule.terms):
            return None
        read, total = [self.values[x] for x in access.operands(node)], None
        for term in rule.terms:
            if term.map == BROADCAST:
                one = read[term.operands[0]]
            else:
                one = self.contracted([read[i] for i in term.operands], *_labels(term))
            if term.coefficient != 1:
                factor = float(term.coefficient)
                one = self.call(MUL, access.tensor(one), access.shape(one), one, factor)
            total = one if total is None else self.call(
                ADD, access.tensor(node), access.shape(node), total, one
            )  # fmt: skip
        return total

    def contracted(
        self, factors: Sequence[fx.Node], labels: Sequence[Sequence[int]], result: Sequence[int]
    ) -> fx.Node:
        """Write the sum of products of ``factors``, over the labels that the result lacks."""
        sizes: dict[int, Any] = {}
        factors, labels = zip(*map(_unpermuted, factors, labels), strict=True)
        for x, own in zip(factors, labels, strict=True):
            sizes |= zip(own, access.shape(x), strict=True)
        order = _common_order([*labels, result]) or _common_order(labels)
        order = order or (*result, *(n for n in sizes if n not in result))
        total: fx.Node | None = None
        for x, own in zip(factors, labels, strict=True):
            ordered = sorted(own, key=order.index)
            x = self.permuted(x, [own.index(n) for n in ordered])
            x = self.view(x, [sizes[n] if n in own else 1 for n in order])
            if total is not None:
                pairs = zip(access.shape(total), access.shape(x), strict=True)
                every = [a if type(b) is int and b == 1 else b for a, b in pairs]
                total = self.call(MUL, access.tensor(x), every, total, x)
            else:
                total = x
        assert total is not None, "a product has factors"
        gone = [i for i, n in enumerate(order) if n not in result]
        left = [n for n in order if n in result]
        return self.permuted(self.summed_over(total, gone), [left.index(n) for n in result])

    def permuted(self, x: fx.Node, order: Sequence[int]) -> fx.Node:
        """Write a permutation of the dimensions."""
        if list(order) == sorted(order):
            return x
        sizes = [access.shape(x)[d] for d in order]
        return self.call(aten.permute.default, access.tensor(x), sizes, x, list(order))

    def turned(self, node: fx.Node) -> fx.Node | None:
        """Write any transposition as a permutation."""
        order = _order(node)
        return (
            None if order is None else self.permuted(self.values[access.operands(node)[0]], order)
        )

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


def _is_einsum(term: Term) -> bool:
    return isinstance(term.map, tuple) and term.map[0] == "einsum" and not term.fixed


def _labels(term: Term) -> tuple[Sequence[tuple[int, ...]], tuple[int, ...]]:
    """Return the labels of the factors and of the result, as ``builders.product`` writes them."""
    assert isinstance(term.map, tuple), "it is an einsum"
    return term.map[1:-1], term.map[-1]


def _order(node: fx.Node) -> Sequence[int] | None:
    """Return the dimension of the operand that each one of the result is; None for other calls."""
    rule = meaning_of(Call.of(node)) if node.op == "call_function" else None
    key = rule.terms[0].map if rule is not None and rule.terms else None
    return key[1] if isinstance(key, tuple) and key[0] == "permute" else None


def _unpermuted(x: fx.Node, labels: Sequence[int]) -> tuple[fx.Node, Sequence[int]]:
    """Return what was permuted to ``x``, and the labels of its dimensions."""
    if x.target is not aten.permute.default:
        return x, labels
    label_of = dict(zip(x.args[1], labels, strict=True))  # type: ignore[arg-type]
    return _unpermuted(access.operands(x)[0], [label_of[d] for d in range(len(labels))])


def _common_order(every: Sequence[Sequence[int]]) -> tuple[int, ...] | None:
    """Return an order of all labels that agrees with each of ``every``; None if there is none."""
    left = dict.fromkeys(n for labels in every for n in labels)
    order: list[int] = []
    while left:
        ahead = {n for labels in every for n in [x for x in labels if x in left][1:]}
        free = [n for n in left if n not in ahead]
        if not free:
            return None
        order.append(free[0])
        del left[free[0]]
    return tuple(order)


Writer = Callable[[_Form, fx.Node], fx.Node | None]
_WRITERS: Mapping[object, Writer] = {
    **dict.fromkeys(PRODUCTS, _Form.product),
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
    aten.select.int: _Form.select,
    aten.stack.default: _Form.stack,
    aten.slice_scatter.default: _Form.written,
    aten.select_scatter.default: _Form.written,
    aten.constant_pad_nd.default: _Form.padded,
    aten.pad.default: _Form.padded,
    aten.repeat.default: _Form.repeated,
    aten.repeat_interleave.self_int: _Form.repeated,
    aten.sum.default: _Form.summed,
    SUM: _Form.summed,
    aten.mean.default: _Form.summed,
    aten.mean.dim: _Form.summed,
    torch.ops._c10d_functional.all_to_all_single.default: _Form.exchanged,
    torch.ops.commplan.all_slice.default: _Form.own_share,
    WAIT: _Form.waited,
}
"""Op -> what writes its calls in the form."""
