"""Mistakes in static arguments: dimensions, numbers, bounds, shapes, element types, ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from compiler.ir import access
from scripts.mutate.draft import Draft

aten = torch.ops.aten

FACTORS = ("alpha", "beta", "other", "value")
"""Arguments that are numbers to calculate with, even where they are integers."""


def _written(d: Draft, *names: str) -> Iterator[tuple[fx.Node, str, Any]]:
    """Arguments of these names (of any, if none is given) that calls write down."""
    for node in d.calls():
        if isinstance(node.target, OpOverload):
            for name, value in access.written_arguments(node).items():
                if not names or name in names:
                    yield node, name, value


def wrong_dim(d: Draft) -> None:
    """An op works along another dimension."""
    places = [
        (n, name, value) for n, name, value in _written(d, "dim", "dim0", "dim1")
        if (isinstance(value, int) and not isinstance(value, bool))
        or (isinstance(value, list | tuple) and len(value) == 1)
    ]  # fmt: skip
    node, name, value = d.pick(places)
    rank = len(access.shape(access.operands(node)[0]))
    now = value if isinstance(value, int) else value[0]
    other = d.pick(i for i in range(rank) if i != now % rank)
    d.set(node, name, other if isinstance(value, int) else [other])


def wrong_number(d: Draft) -> None:
    """Another epsilon, alpha, factor or fill value."""
    places = [
        (n, name, value) for n, name, value in _written(d)
        if type(value) is float or (type(value) is int and name in FACTORS)
    ]  # fmt: skip
    node, name, value = d.pick(places)
    # 2^31 - 1 and 2^31: what a checker that calculates modulo a prime may take for 0 and 1.
    others = (value + 1, 2 * value + 0.5, -value - 1, value + 2**31 - 1, (value or 1) * 2**31)
    d.set(node, name, d.pick(others))


def wrong_bound(d: Draft) -> None:
    """A slice, a block or an index one further on."""
    names = ("start", "end", "length", "index", "split_size", "shifts", "multiple")
    places = [(n, name, value) for n, name, value in _written(d, *names) if type(value) is int]
    node, name, value = d.pick(places)
    d.set(node, name, value + d.pick((1, -1)))


def wrong_shape(d: Draft) -> None:
    """A view with its sizes in another order."""
    places = [
        (n, name, value) for n, name, value in _written(d, "shape", "size")
        if isinstance(value, list | tuple) and len({str(x) for x in value}) > 1
    ]  # fmt: skip
    node, name, value = d.pick(places)
    _shuffle(d, node, name, value)


def wrong_permutation(d: Draft) -> None:
    """A transpose with its dimensions in another order."""
    node, name, value = d.pick(
        (n, name, value)
        for n, name, value in _written(d, "dims")
        if n.target is aten.permute.default
    )
    _shuffle(d, node, name, value)


def _shuffle(d: Draft, node: fx.Node, name: str, value: Any) -> None:
    """The list in another order; a permutation of fewer than two entries has no other."""
    i = d.pick(range(len(value)))
    j = d.pick(j for j in range(len(value)) if str(value[j]) != str(value[i]))
    mixed = list(value)
    mixed[i], mixed[j] = mixed[j], mixed[i]
    d.set(node, name, mixed)


def wrong_cast(d: Draft) -> None:
    """A conversion to another type; what reads it must still run."""
    types = (torch.float64, torch.float32, torch.bfloat16)
    node, name, value = d.pick(
        (n, name, value) for n, name, value in _written(d, "dtype") if value in types
    )
    d.set(node, name, d.pick(t for t in types if t is not value))


def wrong_flag(d: Draft) -> None:
    """A switch the other way: causal attention, accumulation, keepdim."""
    silent = ("pin_memory", "non_blocking")  # about where tensors are, not what they hold
    node, name, value = d.pick(
        (n, name, h) for n, name, h in _written(d) if isinstance(h, bool) and name not in silent
    )
    d.set(node, name, not value)


def rotated_ranks(d: Draft) -> None:
    """Every rank takes the number of the next one."""
    _rank_constant(d, lambda values: (*values[1:], values[0]))


def number_of_rank_zero(d: Draft) -> None:
    """All ranks take the number of the first one."""
    _rank_constant(d, lambda values: (values[0],) * len(values))


def _rank_constant(d: Draft, change: Any) -> None:
    node = d.pick(n for n in d.calls() if access.rank_constants(n))
    kinds = (access.RankInt, access.RankFloat)

    def changed(item: Any) -> Any:
        if not isinstance(item, kinds):
            return item
        values = change(item.values)
        return type(item)(values[0], values)

    node.args, node.kwargs = fx.node.map_aggregate((node.args, node.kwargs), changed)
    d.touched.add(node)


MUTATIONS = (
    wrong_dim, wrong_number, wrong_bound, wrong_shape, wrong_permutation, wrong_cast, wrong_flag,
    rotated_ranks, number_of_rank_zero,
)  # fmt: skip
