"""Mistakes in values: another operand, a stale one, a factor, an order, a part for the whole."""

from __future__ import annotations

import torch
from torch import fx

from compiler.ir import access
from compiler.ir.collectives import OPS
from scripts.mutate.draft import Draft, NothingToBreakError, is_float, same_type

aten = torch.ops.aten

ADDS = (aten.add.Tensor, aten.sub.Tensor)
UNARY = (
    aten.silu.default, aten.tanh.default, aten.sigmoid.default, aten.relu.default,
    aten.neg.default, aten.rsqrt.default, aten.exp.default, aten.abs.default,
)  # fmt: skip
WRITES = (
    aten.copy.default, aten.index_put.default, aten.index_add.default, aten.index_copy.default,
    aten.scatter_add.default, aten.slice_scatter.default, aten.scatter.src,
)  # fmt: skip


def other_operand(d: Draft) -> None:
    """An op reads another value of the same type: another layer's residual, for instance."""
    node, x = d.pick((n, x) for n in d.nodes if access.has_result(n) for x in access.operands(n)
                     if x.target not in OPS)  # fmt: skip
    node.replace_input_with(x, d.pick(d.alike(x, node)))
    d.touched.add(node)


def wrong_weight(d: Draft) -> None:
    """An op reads another input of the same type."""
    inputs = [n for n in d.nodes if n.op in ("placeholder", "get_attr")]
    x, other, user = d.pick(
        (a, b, user) for a in inputs for user in a.users for b in d.alike(a, user) if b in inputs
    )
    d.redirect(x, other, only=user)


def swapped_operands(d: Draft) -> None:
    """Two operands of one op change places."""
    places = [
        (n, a, b) for n in d.calls() for i, a in enumerate(access.operands(n))
        for b in access.operands(n)[:i] if a is not b and same_type(a, b)
    ]  # fmt: skip
    node, a, b = d.pick(places)
    node.args, node.kwargs = access.map_operands(node, lambda x: {a: b, b: a}.get(x, x))
    d.touched.add(node)


def repeated_operand(d: Draft) -> None:
    """An op reads one operand twice, and another not at all."""
    places = [
        (n, a, b) for n in d.calls() for a in access.operands(n) for b in access.operands(n)
        if a is not b and same_type(a, b)
    ]  # fmt: skip
    node, a, b = d.pick(places)
    node.replace_input_with(a, b)
    d.touched.add(node)


def skipped_op(d: Draft) -> None:
    """An op is left out: its readers see what it read."""
    node, x = d.pick((n, x) for n in d.calls() for x in access.operands(n) if same_type(n, x))
    d.redirect(node, x)


def stale_read(d: Draft) -> None:
    """One reader of a value sees what it was before the last op."""
    places = [
        (n, x, user) for n in d.calls() for x in access.operands(n) if same_type(n, x)
        for user in n.users
    ]  # fmt: skip
    node, x, user = d.pick(places)
    d.redirect(node, x, only=user)


def dropped_term(d: Draft) -> None:
    """A sum without one of its terms: a residual or a bias that nobody adds."""
    node = d.pick(n for n in d.calls(*ADDS) if len(access.operands(n)) == 2)
    term = d.pick(x for x in access.operands(node) if same_type(node, x))
    d.redirect(node, term)


def repeated_term(d: Draft) -> None:
    """A sum with a term added twice."""
    node = d.pick(n for n in d.calls(*ADDS) if len(access.operands(n)) == 2)
    term = d.pick(access.operands(node))
    d.wrap(node, lambda x: d.after(x, aten.add.Tensor, x, term))


def scaled_by_group(d: Draft) -> None:
    """A value is multiplied by the number of ranks."""
    count = d.group_size(d.pick(d.groups()))
    d.wrap(d.pick(d.values()), lambda x: d.after(x, aten.mul.Tensor, x, count))


def divided_by_group(d: Draft) -> None:
    """A value is divided by the number of ranks."""
    count = d.group_size(d.pick(d.groups()))
    d.wrap(d.pick(d.values()), lambda x: d.after(x, aten.div.Tensor, x, count))


def negated(d: Draft) -> None:
    """A value changes its sign."""
    d.wrap(d.pick(d.values()), lambda x: d.after(x, aten.neg.default, x))


def shifted(d: Draft) -> None:
    """A constant is added."""
    d.wrap(d.pick(d.values()), lambda x: d.after(x, aten.add.Tensor, x, 0.125))


def on_one_rank_only(d: Draft) -> None:
    """A value counts on the first rank alone, and is zero on the others."""
    values = (1.0, *[0.0] * (d.spmd.mesh.size - 1))
    factor = access.RankFloat(1.0, values)
    d.wrap(d.pick(d.values()), lambda x: d.after(x, aten.mul.Tensor, x, factor))


def sharded_where_whole(d: Draft) -> None:
    """Readers of a value see this rank's rows of it, for all rows."""
    group = d.pick(d.groups())
    count = d.group_size(group)
    node = d.pick(
        n for n in d.values()
        if access.shape(n) and isinstance(rows := access.shape(n)[0], int) and rows % count == 0
    )  # fmt: skip
    rows = int(access.shape(node)[0]) // count
    starts = tuple(rows * i for i in d.position(group))

    def repeated(x: fx.Node) -> fx.Node:
        start = access.RankInt(starts[0], starts)
        block = d.after(x, aten.narrow.default, x, 0, start, rows)
        return d.after(block, aten.cat.default, [block] * count)

    d.wrap(node, repeated)


def transposed(d: Draft) -> None:
    """A value in another layout: columns read as rows."""
    node = d.pick(n for n in d.values() if len(access.shape(n)) > 1)
    shape = list(access.shape(node))
    if not all(isinstance(n, int) for n in shape):
        raise NothingToBreakError

    def turned(x: fx.Node) -> fx.Node:
        return d.after(
            twice := d.after(x, aten.transpose.int, x, 0, len(shape) - 1),
            aten.reshape.default, twice, shape,
        )  # fmt: skip

    d.wrap(node, turned)


def reversed_rows(d: Draft) -> None:
    """Rows of other tokens."""
    node = d.pick(n for n in d.values() if access.shape(n))
    d.wrap(node, lambda x: d.after(x, aten.flip.default, x, [0]))


def reversed_index(d: Draft) -> None:
    """Rows are read, or written, in another order."""
    integers = (torch.int32, torch.int64)
    node = d.pick(
        n for n in d.nodes
        if n.users and access.is_tensor(n) and access.dtype(n) in integers and access.shape(n)
    )  # fmt: skip
    d.wrap(node, lambda x: d.after(x, aten.flip.default, x, [0]))


def inverted_mask(d: Draft) -> None:
    """What should be left out is taken, and the other way round."""
    node = d.pick(
        n for n in d.nodes if n.users and access.is_tensor(n) and access.dtype(n) is torch.bool
    )
    d.wrap(node, lambda x: d.after(x, aten.logical_not.default, x))


def truncated(d: Draft) -> None:
    """A value passes through an integer type."""
    node = d.pick(d.values())

    def through(x: fx.Node) -> fx.Node:
        whole = d.after(x, aten._to_copy.default, x, dtype=torch.int64)
        return d.after(whole, aten._to_copy.default, whole, dtype=access.dtype(x))

    d.wrap(node, through)


def rounded(d: Draft) -> None:
    """A value passes through a narrower type; over the reals nothing happens."""
    node = d.pick(n for n in d.values() if access.dtype(n) is not torch.bfloat16)

    def through(x: fx.Node) -> fx.Node:
        narrow = d.after(x, aten._to_copy.default, x, dtype=torch.bfloat16)
        return d.after(narrow, aten._to_copy.default, narrow, dtype=access.dtype(x))

    d.wrap(node, through)


def another_function(d: Draft) -> None:
    """Another nonlinearity."""
    node = d.pick(d.calls(*UNARY))
    node.target = d.pick(t for t in UNARY if t is not node.target)
    d.touched.add(node)


def distributed(d: Draft) -> None:
    """f(a + b) as f(a) + f(b)."""
    places = [
        (n, x) for n in d.calls() for x in set(access.operands(n))
        if x.target is aten.add.Tensor and len(access.operands(x)) == 2 and is_float(n)
        and all(same_type(x, y) for y in access.operands(x)) and not x.kwargs
    ]  # fmt: skip
    node, total = d.pick(places)
    result = node
    parts = []
    for term in access.operands(total):
        args, kwargs = access.map_operands(node, lambda x, term=term: term if x is total else x)  # type: ignore[misc]
        result = d.after(result, node.target, *args, **kwargs)
        parts.append(result)
    d.redirect(node, d.after(result, aten.add.Tensor, *parts))


def swapped_order(d: Draft) -> None:
    """f(g(x)) as g(f(x)): a norm before the addition, not after it."""
    places = [
        (n, x) for n in d.calls() for x in set(access.operands(n))
        if x in d.calls() and same_type(n, x) and list(x.users) == [n] and n.target != x.target
        and any(same_type(y, x) for y in access.operands(x)[:1])
    ]  # fmt: skip
    outer, inner = d.pick(places)
    x = access.operands(inner)[0]
    args, kwargs = access.map_operands(outer, lambda y: x if y is inner else y)
    first = d.after(outer, outer.target, *args, **kwargs)
    args, kwargs = access.map_operands(inner, lambda y: first if y is x else y)
    d.redirect(outer, d.after(first, inner.target, *args, **kwargs))


def read_before_write(d: Draft) -> None:
    """Readers of an updated tensor (a cache, an input that is written back) see the old one."""
    node = d.pick(n for n in d.calls(*WRITES) if same_type(n, access.operands(n)[0]))
    d.redirect(node, access.operands(node)[0])


def read_after_write(d: Draft) -> None:
    """A reader of a tensor sees the update that should come after it."""
    order = {n: i for i, n in enumerate(d.nodes)}
    places = [
        (n, x, user) for n in d.calls(*WRITES) for x in access.operands(n)[:1]
        if same_type(n, x) for user in x.users if order[user] > order[n]
    ]  # fmt: skip
    node, x, user = d.pick(places)
    d.redirect(x, node, only=user)


def swapped_outputs(d: Draft) -> None:
    """Two outputs change places."""
    output = access.output(d.spmd.graph)
    returned = access.results(output)
    a, b = d.pick(
        (a, b) for i, a in enumerate(returned) for b in returned[:i]
        if a is not b and same_type(a, b)
    )  # fmt: skip
    output.args, output.kwargs = access.map_operands(output, lambda x: {a: b, b: a}.get(x, x))


def stale_output(d: Draft) -> None:
    """The graph returns an earlier value of the same type."""
    output = access.output(d.spmd.graph)
    x = d.pick(access.results(output))
    d.redirect(x, d.pick(d.alike(x, output)), only=output)


MUTATIONS = (
    other_operand, wrong_weight, swapped_operands, repeated_operand, skipped_op, stale_read,
    dropped_term, repeated_term, scaled_by_group, divided_by_group, negated, shifted,
    on_one_rank_only, sharded_where_whole, transposed, reversed_rows, reversed_index,
    inverted_mask, truncated, rounded, another_function, distributed, swapped_order,
    read_before_write, read_after_write, swapped_outputs, stale_output,
)  # fmt: skip
