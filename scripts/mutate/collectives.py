"""Mistakes in collectives: left out, repeated, misplaced, over other ranks, of another kind."""

from __future__ import annotations

import torch
from torch import fx

from compiler.ir import access
from compiler.ir.collectives import OPS, WAIT, Collective, Kind
from compiler.ir.fused_ops import ALL_REDUCE_NORM, SHARED_NORM
from compiler.ir.row_ops import ALL_SLICE
from scripts.mutate.draft import Draft, NothingToBreakError, c10d, is_float, same_type

aten = torch.ops.aten

IN_PLACE = (Kind.ALL_REDUCE, Kind.BROADCAST, Kind.ALL_TO_ALL)
"""Collectives whose result has the shape of their operand."""


def drop_collective(d: Draft) -> None:
    """Nobody reduces: readers see what this rank has."""
    wait, one = d.pick(d.waits(*IN_PLACE))
    d.redirect(wait, one.operand)


def drop_gather(d: Draft) -> None:
    """Nobody gathers: this rank's rows stand for those of all."""
    wait, one = d.pick(d.waits(Kind.ALL_GATHER))
    parts = [one.operand] * d.group_size(one.group)
    d.redirect(wait, d.after(wait, aten.cat.default, parts))


def drop_scatter(d: Draft) -> None:
    """Nobody reduces: this rank's block of what it has itself."""
    wait, one = d.pick(d.waits(Kind.REDUCE_SCATTER))
    d.redirect(wait, _own_block(d, wait, one.operand, one.group, int(access.shape(wait)[0])))


def _own_block(d: Draft, at: fx.Node, x: fx.Node, group: str, rows: int) -> fx.Node:
    starts = tuple(rows * i for i in d.position(group))
    return d.after(at, aten.narrow.default, x, 0, access.RankInt(starts[0], starts), rows)


def duplicate_collective(d: Draft) -> None:
    """What is reduced is reduced again."""
    wait, _ = d.pick(d.waits(*IN_PLACE))
    started = wait.args[0]
    assert isinstance(started, fx.Node)
    d.wrap(wait, lambda x: d.communicate(x, x, started.target, *started.args[1:]))


def reduce_part_twice(d: Draft) -> None:
    """A part of a sum is reduced by itself, and then with the rest of it."""
    places = [
        (one, x) for _, one in d.waits(Kind.ALL_REDUCE)
        if one.operand.op == "call_function"
        for x in access.operands(one.operand) if is_float(x) and x.target not in OPS
    ]  # fmt: skip
    one, x = d.pick(places)
    reduced = d.all_reduce(x, x, one.op, one.group)
    d.redirect(x, reduced, only=one.operand)


def reduce_later(d: Draft) -> None:
    """The reduction stands one op further down, whatever that op does."""
    places = [
        (wait, one, user) for wait, one in d.waits(Kind.ALL_REDUCE) for user in wait.users
        if user.op == "call_function" and user.target not in OPS and is_float(user)
    ]  # fmt: skip
    _move_below(d, *d.pick(places))


def _move_below(d: Draft, wait: fx.Node, one: Collective, user: fx.Node) -> None:
    d.redirect(wait, one.operand, only=user)
    d.wrap(user, lambda x: d.all_reduce(x, x, one.op, one.group))


def replicated_term_inside_sum(d: Draft) -> None:
    """A term that all ranks hold joins the sum before it is reduced: it counts n times."""
    adds = (aten.add.Tensor, aten.sub.Tensor)
    places = [
        (wait, one, user) for wait, one in d.waits(Kind.ALL_REDUCE) for user in wait.users
        if user.target in adds and len(set(access.operands(user))) == 2
    ]  # fmt: skip
    _move_below(d, *d.pick(places))


def partial_sums_multiplied(d: Draft) -> None:
    """Two reductions become one of the product of what they reduced."""
    reduced = dict(d.waits(Kind.ALL_REDUCE))
    products = [
        n for n in d.calls() if len(access.operands(n)) > 1
        and is_float(n) and all(x in reduced for x in access.operands(n))
    ]  # fmt: skip
    node = d.pick(products)
    one = reduced[access.operands(node)[0]]
    for x in set(access.operands(node)):
        d.redirect(x, reduced[x].operand, only=node)
    d.wrap(node, lambda x: d.all_reduce(x, x, one.op, one.group))


def reduce_earlier(d: Draft) -> None:
    """The operands are reduced, not what is computed from them."""
    places = [
        (wait, one) for wait, one in d.waits(Kind.ALL_REDUCE)
        if one.operand.op == "call_function" and one.operand.target is not WAIT
        and any(is_float(x) for x in access.operands(one.operand))
    ]  # fmt: skip
    wait, one = d.pick(places)
    for x in dict.fromkeys(access.operands(one.operand)):
        if is_float(x):
            d.redirect(x, d.all_reduce(x, x, one.op, one.group), only=one.operand)
    d.redirect(wait, one.operand)


def extra_collective(d: Draft) -> None:
    """A value that nobody has to reduce is reduced: rows of different tokens, or whole values."""
    node = d.pick(d.values())
    group = d.pick(d.groups())
    d.wrap(node, lambda x: d.all_reduce(x, x, "sum", group))


def wrong_group(d: Draft) -> None:
    """A collective over other ranks."""
    wait, one = d.pick(d.waits(*Kind))
    started = wait.args[0]
    assert isinstance(started, fx.Node)
    fixed = one.kind in (Kind.ALL_REDUCE, Kind.BROADCAST)
    others = d.groups(None if fixed else d.group_size(one.group))
    d.set(started, "group_name", d.pick(n for n in others if n != one.group))


def fused_over_wrong_group(d: Draft) -> None:
    """A reduction that is fused with its norm, over other ranks."""
    node = d.pick(n for n in d.calls() if n.target in (ALL_REDUCE_NORM, SHARED_NORM))
    group = access.written_arguments(node)["group_name"]
    others = d.groups(d.group_size(group))
    d.set(node, "group_name", d.pick(n for n in others if n != group))


def fused_with_another_residual(d: Draft) -> None:
    """A fused op that adds its own partial sum instead of the residual."""
    node = d.pick(n for n in d.calls() if n.target in (ALL_REDUCE_NORM, SHARED_NORM))
    x, residual, *_ = access.operands(node)
    d.redirect(residual, x, only=node)


def wrong_reduction(d: Draft) -> None:
    """A maximum or an average for a sum, a sum for an average."""
    wait, one = d.pick(d.waits(Kind.ALL_REDUCE, Kind.REDUCE_SCATTER))
    started = wait.args[0]
    assert isinstance(started, fx.Node)
    kinds = ("sum", "avg", "max", "min", "product")
    d.set(started, "reduce_op", d.pick(k for k in kinds if k != one.op))


def broadcast_for_reduction(d: Draft) -> None:
    """The first rank's addend for the sum: only rank 0's part is used."""
    wait, one = d.pick(d.waits(Kind.ALL_REDUCE))
    target = c10d.broadcast.default
    d.redirect(wait, d.communicate(wait, one.operand, target, 0, one.group))


def scatter_and_gather_apart(d: Draft) -> None:
    """An all_reduce as reduce_scatter and all_gather, which do not agree on the group."""
    wait, one = d.pick(d.waits(Kind.ALL_REDUCE))
    size = d.group_size(one.group)
    other = d.pick(n for n in d.groups(size) if n != one.group)
    scatter, gather = c10d.reduce_scatter_tensor.default, c10d.all_gather_into_tensor.default
    part = d.communicate(wait, one.operand, scatter, one.op, size, one.group)
    d.redirect(wait, d.communicate(part, part, gather, size, other))


def scatter_without_gather(d: Draft) -> None:
    """An all_reduce as reduce_scatter, whose block then stands for all rows."""
    wait, one = d.pick(d.waits(Kind.ALL_REDUCE))
    size, scatter = d.group_size(one.group), c10d.reduce_scatter_tensor.default
    if size == 1:
        raise NothingToBreakError
    part = d.communicate(wait, one.operand, scatter, one.op, size, one.group)
    d.redirect(wait, d.after(part, aten.cat.default, [part] * size))


def first_block_everywhere(d: Draft) -> None:
    """Of what is gathered, the first rank's block is used for every rank's."""
    wait, one = d.pick(d.waits(Kind.ALL_GATHER))
    rows, size = access.shape(one.operand)[0], d.group_size(one.group)
    if not isinstance(rows, int):
        raise NothingToBreakError
    block = d.after(wait, aten.narrow.default, wait, 0, 0, rows)
    d.redirect(wait, d.after(block, aten.cat.default, [block] * size), keep=[block])


def gather_out_of_order(d: Draft) -> None:
    """Blocks are gathered in another order than they were scattered in."""
    wait, one = d.pick(d.waits(Kind.ALL_GATHER))
    rows = access.shape(one.operand)[0]
    if not isinstance(rows, int):
        raise NothingToBreakError
    d.wrap(wait, lambda x: d.after(x, aten.roll.default, x, [rows], [0]))


def scatter_out_of_order(d: Draft) -> None:
    """Ranks get each other's blocks."""
    wait, one = d.pick(d.waits(Kind.REDUCE_SCATTER, Kind.ALL_TO_ALL))
    rows, size = int(access.shape(one.operand)[0]), d.group_size(one.group)
    started = wait.args[0]
    assert isinstance(started, fx.Node)
    turned = d.after(one.operand, aten.roll.default, one.operand, [rows // size], [0])
    d.redirect(one.operand, turned, only=started)


def slice_among_other_ranks(d: Draft) -> None:
    """A rank takes the rows that it would hold in another group."""
    node = d.pick(d.calls(ALL_SLICE))
    size, name = (access.arguments(node)[n] for n in ("group_size", "group_name"))
    d.set(node, "group_name", d.pick(n for n in d.groups(int(size)) if n != name))


def padding_kept(d: Draft) -> None:
    """Rows that stand for nothing are read like any other: moved to the front before the cut."""
    places = [n for n in d.calls(aten.slice.Tensor) if access.operands(n)[0].target is WAIT]
    node = d.pick(places)
    x = access.operands(node)[0]
    d.redirect(x, d.after(x, aten.flip.default, x, [0]), only=node)


def gather_along_another_dim(d: Draft) -> None:
    """Columns are gathered where rows should be."""
    wait, one = d.pick(
        (w, c) for w, c in d.waits(Kind.ALL_GATHER) if len(access.shape(c.operand)) > 1
    )
    size, gather = d.group_size(one.group), c10d.all_gather_into_tensor.default
    turned = d.after(wait, aten.transpose.int, one.operand, 0, 1)
    gathered = d.communicate(turned, turned, gather, size, one.group)
    shape = list(access.shape(wait))
    if not all(isinstance(n, int) for n in shape):
        raise NothingToBreakError
    d.redirect(wait, d.after(gathered, aten.reshape.default, gathered, shape))


def missing_wait(d: Draft) -> None:
    """A collective's result is read before it has arrived."""
    wait, _ = d.pick(d.waits(*Kind))
    started = wait.args[0]
    assert isinstance(started, fx.Node)
    d.redirect(wait, started)


def partial_output(d: Draft) -> None:
    """The graph returns a sum that is not reduced."""
    output = access.output(d.spmd.graph)
    wait, one = d.pick(
        (w, c) for w, c in d.waits(*IN_PLACE) if output in w.users and same_type(w, c.operand)
    )
    d.redirect(wait, one.operand, only=output)


MUTATIONS = (
    drop_collective, drop_gather, drop_scatter, duplicate_collective, reduce_part_twice,
    reduce_later, replicated_term_inside_sum, partial_sums_multiplied, reduce_earlier,
    extra_collective, wrong_group, fused_over_wrong_group, fused_with_another_residual,
    wrong_reduction, broadcast_for_reduction, scatter_and_gather_apart, scatter_without_gather,
    first_block_everywhere, gather_out_of_order, scatter_out_of_order, slice_among_other_ranks,
    padding_kept, gather_along_another_dim, missing_wait, partial_output,
)  # fmt: skip
