"""Sums and products, written as sums along one dimension of products of broadcast tensors."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import fx

from compiler.check.form_writer import VIEW, FormWriter
from compiler.check.single_device.factors import row_major_groups
from compiler.ir import access
from compiler.ir.rules import BROADCAST, Call, Term, meaning_of
from compiler.ir.rules.meaning import shape_key

aten = torch.ops.aten
MUL, ADD, SUM = aten.mul.Tensor, aten.add.Tensor, aten.sum.dim_IntList


def summed(form: FormWriter, node: fx.Node) -> fx.Node | None:
    """Write a sum or mean over dimensions."""
    arguments, x = form.arguments(node), form.values[access.operands(node)[0]]
    if access.dtype(x) is not access.dtype(node) or not access.dtype(x).is_floating_point:
        return None
    rank, named = len(access.shape(x)), arguments.get("dim")
    many = [named] if isinstance(named, int) else named
    dims = sorted({d % rank for d in many} if many else range(rank))
    count = prod(n for d in dims if type(n := access.shape(x)[d]) is int)
    averages = node.target in (aten.mean.default, aten.mean.dim)
    if averages and (not count or any(type(access.shape(x)[d]) is not int for d in dims)):
        return None
    total = form.view(summed_over(form, x, dims), access.shape(node))
    if not averages or count == 1:
        return total
    return form.call(aten.div.Tensor, access.tensor(x), access.shape(total), total, count)


def summed_over(form: FormWriter, x: fx.Node, dims: Sequence[int]) -> fx.Node:
    """Write sums over dimensions, which are gone; those of size one are views."""
    for dim in sorted(dims, reverse=True):
        x = summed_along(form, x, dim)
    return x


def summed_along(form: FormWriter, x: fx.Node, dim: int) -> fx.Node:
    """Write the sum along one dimension: of what a view shows, along later dimensions first."""
    shape = access.shape(x)
    sizes = [n for d, n in enumerate(shape) if d != dim]
    if shape[dim] == 1:
        return form.view(x, sizes)
    if x.target is VIEW:
        (source,) = access.operands(x)
        groups = row_major_groups(*map(shape_key, (access.tensor(source), access.tensor(x))))
        (before,) = (left for left, right in groups if dim in right)
        if before and all(right == (dim,) for left, right in groups if left == before):
            return form.view(summed_over(form, source, before), sizes)
    if x.target is SUM and dim >= (first := access.arguments(x)["dim"][0]):
        (source,) = access.operands(x)
        return summed_along(form, summed_along(form, source, dim + 1), first)
    return form.call(SUM, access.tensor(x), sizes, x, [dim])


def product(form: FormWriter, node: fx.Node) -> fx.Node | None:
    """Write a product with contracted dimensions, and what is added to it."""
    rule = meaning_of(Call.of(node))
    if rule is None or not rule.terms or not access.dtype(node).is_floating_point:
        return None
    if not all(t.map == BROADCAST or _is_einsum(t) for t in rule.terms):
        return None
    read, total = [form.values[x] for x in access.operands(node)], None
    for term in rule.terms:
        if term.map == BROADCAST:
            one = read[term.operands[0]]
        else:
            one = contracted(form, [read[i] for i in term.operands], *_labels(term))
        if term.coefficient != 1:
            factor = float(term.coefficient)
            one = form.call(MUL, access.tensor(one), access.shape(one), one, factor)
        total = one if total is None else form.call(
            ADD, access.tensor(node), access.shape(node), total, one
        )  # fmt: skip
    return total


def contracted(
    form: FormWriter,
    factors: Sequence[fx.Node],
    labels: Sequence[Sequence[int]],
    result: Sequence[int],
) -> fx.Node:
    """Write the sum of products of ``factors``, over the labels that the result lacks."""
    sizes: dict[int, Any] = {}
    factors, labels = zip(*map(_unpermuted, factors, labels), strict=True)
    for x, own in zip(factors, labels, strict=True):
        sizes |= zip(own, access.shape(x), strict=True)
    order: Sequence[int] = [*result, *(n for n in sizes if n not in result)]
    if any(len(own) == len(sizes) for own in labels):  # weights: the others only scale it
        order = _common_order([*labels, result]) or _common_order(labels) or order
    runs = _runs(order, [*labels, result])
    total: fx.Node | None = None
    for x, own in zip(factors, labels, strict=True):
        x = form.permuted(x, [own.index(n) for n in sorted(own, key=order.index)])
        x = form.view(x, [prod(sizes[n] for n in run) if run[0] in own else 1 for run in runs])
        if total is not None:
            pairs = zip(access.shape(total), access.shape(x), strict=True)
            every = [a if type(b) is int and b == 1 else b for a, b in pairs]
            total = form.call(MUL, access.tensor(x), every, total, x)
        else:
            total = x
    assert total is not None, "a product has factors"
    total = summed_over(form, total, [i for i, run in enumerate(runs) if run[0] not in result])
    left = [n for n in order if n in result]
    total = form.view(total, [sizes[n] for n in left])
    return form.permuted(total, [left.index(n) for n in result])


def _is_einsum(term: Term) -> bool:
    return isinstance(term.map, tuple) and term.map[0] == "einsum" and not term.fixed


def _labels(term: Term) -> tuple[Sequence[tuple[int, ...]], tuple[int, ...]]:
    """Return the labels of the factors and of the result, as ``builders.product`` writes them."""
    assert isinstance(term.map, tuple), "it is an einsum"
    return term.map[1:-1], term.map[-1]


def _unpermuted(x: fx.Node, labels: Sequence[int]) -> tuple[fx.Node, Sequence[int]]:
    """Return what was permuted to ``x``, and the labels of its dimensions."""
    if x.target is not aten.permute.default:
        return x, labels
    label_of = dict(zip(x.args[1], labels, strict=True))  # type: ignore[arg-type]
    return _unpermuted(access.operands(x)[0], [label_of[d] for d in range(len(labels))])


def _runs(order: Sequence[int], every: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return ``order`` in runs of labels that stand together wherever one of them stands."""
    runs: list[list[int]] = []
    for n in order:
        last = runs[-1][-1] if runs else None
        if last is not None and all(_follows(last, n, sorted(x, key=order.index)) for x in every):
            runs[-1].append(n)
        else:
            runs.append([n])
    return runs


def _follows(first: int, then: int, labels: Sequence[int]) -> bool:
    pair = [n for n in labels if n in (first, then)]
    at = labels.index(first) if first in labels else -1
    return not pair or list(labels[at : at + 2]) == [first, then]


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
