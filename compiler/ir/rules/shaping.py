"""Ops that move elements: views, transposes, slices, concatenation, padding.

``as_strided`` and ``_reshape_alias`` have no rule: what they read depends on the strides of their
operand, not on its values alone.
"""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import sympy
import torch

from compiler.ir.row_ops import PAD_ROWS
from compiler.ir.rules.builders import (
    Rule,
    aligned,
    converted,
    linear_map,
    moving,
    reshaped,
    scalar,
    table,
    whole_but,
)
from compiler.ir.rules.meaning import (
    BROADCAST,
    RANGE,
    RESHAPE,
    Call,
    Dims,
    Labels,
    Meaning,
    Selection,
    Term,
    size_key,
    static_key,
)


def view(call: Call) -> Meaning:
    """The same elements in the same row-major order."""
    before, after = reshaped(call.shapes[0], call.result)
    like = (after,) * (len(call.shapes) - 1)
    return Meaning(terms=(Term((0,), map=RESHAPE),), dims=Dims((before, *like), (after,)))


def squeeze(call: Call) -> Meaning:
    """A view; a dimension that would go if it had one element must not be cut down to one."""
    rank, named = len(call.shapes[0]), call.arguments.get("dim", tuple(range(len(call.shapes[0]))))
    many = named if isinstance(named, tuple) else (named,)
    squeezed = {int(d) % max(rank, 1) for d in many}
    kept = [d for d in range(rank) if d not in squeezed or call.shapes[0][d] != 1]
    labels: Labels = tuple(None if d in squeezed else d for d in range(rank))
    dims = Dims((labels,), (tuple(labels[d] for d in kept),))
    return Meaning(terms=(Term((0,), map=RESHAPE),), dims=dims)


def expand(call: Call) -> Meaning:
    """Stretches dimensions of size one; to the shape of another tensor, along with that one."""
    every: Labels = tuple(range(len(call.result)))
    labels = aligned(call.shapes[0], call.result, every)
    like = (every,) * (len(call.shapes) - 1)
    result = every if like else tuple(d if d in labels else None for d in every)
    return Meaning(terms=(Term((0,), map=BROADCAST),), dims=Dims((labels, *like), (result,)))


def permuted(call: Call, order: tuple[int, ...]) -> Meaning:
    """Result dimension d is operand dimension ``order[d]``."""
    labels = tuple(range(len(order)))
    term = Term((0,), map=("permute", order) if order != labels else RESHAPE)
    return Meaning(terms=(term,), dims=Dims((labels,), (order,)))


def permute(call: Call) -> Meaning:
    """Reorders dimensions."""
    rank = len(call.shapes[0])
    return permuted(call, tuple(int(d) % rank for d in call.arguments["dims"]))


def swap(first: str | int, second: str | int) -> Rule:
    """Exchanges two dimensions, given by number or argument name."""

    def rule(call: Call) -> Meaning:
        order = list(range(len(call.shapes[0])))
        i, j = (int(call.arguments[d]) if isinstance(d, str) else d for d in (first, second))
        if len(order) > 1:
            order[i], order[j] = order[j], order[i]
        return permuted(call, tuple(order))

    return rule


def reverse(call: Call) -> Meaning:
    """All dimensions in reverse order (t, numpy_T)."""
    return permuted(call, tuple(reversed(range(len(call.shapes[0])))))


def ranged(call: Call, start: Any, count: Any, step: int = 1) -> object:
    """The map to ``count`` indices of dimension ``dim``: the same for the same elements.

    These are named by sizes and strides in the operand, dimensions that are one merged, and by
    where they begin. Where that is not known, or not the same on every rank, by the call.
    """
    dim, shape = call.dim(), call.shapes[0]
    if not shape or type(step) is not int or call.rank_dependent:
        return (call.key,)
    counted = type(start) is int and type(shape[dim]) is int
    if not (counted or isinstance(start, sympy.Expr) or (type(start) is int and start >= 0)):
        return (call.key,)
    first = range(shape[dim])[start:].start if counted else start
    taken: list[tuple[Any, Any]] = []
    stride: Any = 1
    for d in reversed(range(len(shape))):
        size, apart = (count, stride * step) if d == dim else (shape[d], stride)
        if d == dim:
            first *= stride
        if taken and taken[-1][0] * taken[-1][1] == apart:
            size, apart = size * taken[-1][0], taken.pop()[1]
        if size != 1:
            taken.append((size, apart))
        stride *= shape[d]
    everything = first == 0 and taken in ([], [(stride, 1)])
    return RESHAPE if everything and (taken or stride == 1) else (RANGE, stride, *taken, first)


def slice_rows(call: Call) -> Meaning:
    """A range of one dimension; as many rows as there are is all of them."""
    if call.shapes[0] == call.result:
        return Meaning(terms=(Term((0,), map=RESHAPE),), dims=whole_but(call, ()))
    start, step = call.arguments.get("start"), call.arguments.get("step", 1)
    key = ranged(call, 0 if start is None else start, call.result[call.dim()], step)
    return Meaning(terms=(Term((0,), map=key),), dims=whole_but(call, (call.dim(),)))


def _without_dim(call: Call, key: object) -> Meaning:
    """A linear map to tensors in which dimension ``dim`` is gone."""
    rank, dim = len(call.shapes[0]), call.dim()
    labels: Labels = tuple(None if d == dim else d for d in range(rank))
    kept = tuple(d for d in range(rank) if d != dim)
    dims = Dims((labels,), (kept,) * len(call.result_shapes))
    return Meaning(terms=(Term((0,), map=key),), dims=dims)


def select(call: Call) -> Meaning:
    """One index of a dimension, which disappears."""
    return _without_dim(call, ranged(call, call.arguments["index"], 1))


def unbind(call: Call) -> Meaning:
    """Every index of a dimension, one result each."""
    parts = tuple(ranged(call, i, 1) for i in range(len(call.result_shapes)))
    return replace(_without_dim(call, (call.key,)), parts=parts)


def split(call: Call) -> Meaning:
    """Consecutive ranges of a dimension, one result each."""
    dim, start, parts = call.dim(), 0, list[object]()
    for shape in call.result_shapes:
        parts.append(ranged(call, start, shape[dim]))
        start += shape[dim]
    terms = (Term((0,), map=(call.key,)),)
    return Meaning(terms=terms, dims=whole_but(call, (dim,)), parts=tuple(parts))


def cat(call: Call) -> Meaning:
    """Joins along one dimension: jointly linear in all operands."""
    count, dim = len(call.shapes), call.dim()
    if any(len(s) != len(call.result) for s in call.shapes):
        return Meaning()
    labels = tuple(None if d == dim else d for d in range(len(call.result)))
    return _joined(call, Dims((labels,) * count, (labels,)))


def stack(call: Call) -> Meaning:
    """Joins along a dimension of its own."""
    count, rank = len(call.shapes), len(call.result)
    dim = int(call.arguments["dim"]) % rank
    inside: Labels = tuple(d for d in range(rank) if d != dim)
    result: Labels = tuple(None if d == dim else d for d in range(rank))
    return _joined(call, Dims((inside,) * count, (result,)))


def _joined(call: Call, dims: Dims) -> Meaning:
    terms = tuple(Term((i,), map=(call.key, call.shapes, i)) for i in range(len(call.shapes)))
    return Meaning(terms=None if converted(call) else terms, dims=dims)


def difference(call: Call) -> Meaning:
    """Differences of neighbours, of the tensor with others joined to its ends; not for booleans."""
    dims = whole_but(call, (call.dim(),))
    everywhere = Dims(dims.results * len(call.shapes), dims.results)
    joined = [name for name in ("self", "prepend", "append") if call.index(name) is not None]
    if torch.bool in call.result_dtypes:
        return Meaning(dims=everywhere)
    return linear_map(call, *joined, dims=everywhere)


def pad(call: Call) -> Meaning:
    """Pads with a constant: linear for zero, the elements only moved for any."""
    if call.arguments.get("mode", "constant") != "constant":
        return Meaning()
    widths, rank = call.arguments["pad"], len(call.shapes[0])
    touched = {rank - 1 - i // 2 for i, width in enumerate(widths) if size_key(width) != 0}
    value, moved = call.arguments.get("value") or 0, (Term((0,), map=(call.key,)),)
    fill = float(value) if isinstance(value, int | float) else float("nan")
    return Meaning(
        terms=moved if scalar(value) == 0 else None,
        dims=whole_but(call, touched),
        selection=Selection(moved, fill=fill),
    )


def padded_rows(call: Call) -> Meaning:
    """Zero rows at the end of a dimension."""
    return Meaning(terms=(Term((0,), map=(call.key,)),), dims=whole_but(call, (call.dim(),)))


def rearranged(call: Call) -> Meaning:
    """Any other linear map of all elements (flip, roll, repeat, tril, …)."""
    return Meaning(terms=(Term((0,), map=(call.key,), fixed=tuple(range(1, len(call.shapes)))),))


def paired(call: Call) -> Meaning:
    """Complex numbers as pairs of reals in a last dimension, or the other way round."""
    rows = min(len(call.shapes[0]), len(call.result))
    labels = [tuple(d if d < rows else None for d in range(len(s)))
              for s in (call.shapes[0], call.result)]  # fmt: skip
    return Meaning(
        terms=(Term((0,), map=(call.key,)),), dims=Dims((labels[0],), (labels[1],)), casts=True
    )


def picked(call: Call) -> Meaning:
    """getitem: one result of an op of several, element by element."""
    labels: Labels = tuple(range(len(call.result)))
    term = Term((0,), map=("result", static_key(call.arguments["1"])))
    return Meaning(terms=(term,), dims=Dims((labels,), (labels,)))


def slice_written(call: Call) -> Meaning:
    """slice_scatter: self with a range replaced by src, linear in both; all of it is src."""
    dim, source = call.dim(), call.operand("src")
    if call.shapes[source] == call.result and not converted(call):
        dims = whole_but(call, ())
        return Meaning(terms=(Term((source,)),), dims=Dims(dims.results * 2, dims.results))
    dims = whole_but(call, (dim,))
    return linear_map(call, "self", "src", dims=Dims(dims.results * 2, dims.results))


def select_written(call: Call) -> Meaning:
    """select_scatter: self with one index of a dimension replaced by src."""
    dim, (labels,) = call.dim(), whole_but(call, (call.dim(),)).results
    written = tuple(d for d in range(len(call.result)) if d != dim)
    return linear_map(call, "self", "src", dims=Dims((labels, written), (labels,)))


TABLE: dict[Rule, tuple[str, ...]] = {
    moving(view): ("view.default", "_unsafe_view", "reshape", "unsqueeze", "flatten.using_ints",
           "unflatten.int", "view_as", "reshape_as", "view_copy.default", "unsqueeze_copy"),
    moving(squeeze): ("squeeze.default", "squeeze.dim", "squeeze.dims", "squeeze_copy"),
    moving(expand): ("expand", "broadcast_to", "expand_as", "expand_copy"),
    moving(permute): ("permute", "permute_copy"),
    moving(swap("dim0", "dim1")): ("transpose.int", "transpose_copy.int", "swapdims"),
    moving(swap("axis0", "axis1")): ("swapaxes",),
    moving(swap(-2, -1)): ("mT.default",),
    moving(reverse): ("t", "t_copy", "numpy_T.default"),
    moving(slice_rows): ("slice.Tensor", "slice_copy.Tensor", "narrow.default", "narrow_copy"),
    moving(select): ("select.int", "select_copy.int"),
    moving(unbind): ("unbind.int", "unbind_copy.int"),
    moving(split): ("split.Tensor", "split.sizes", "split_with_sizes", "chunk", "split_copy.Tensor",
            "split_with_sizes_copy", "unsafe_split.Tensor", "unsafe_split_with_sizes",
            "tensor_split.sections", "tensor_split.indices"),
    moving(cat): ("cat.default", "concat.default", "concatenate.default"),
    moving(stack): ("stack",),
    difference: ("diff",),
    pad: ("constant_pad_nd", "pad"),
    moving(rearranged): ("flip", "roll", "repeat", "tile", "diagonal", "unfold", "rot90",
                         "repeat_interleave.self_int", "repeat_interleave.self_Tensor"),
    moving(rearranged, fill=0): ("tril", "triu"),
    paired: ("view_as_real", "view_as_complex"),
    moving(slice_written): ("slice_scatter",),
    moving(select_written): ("select_scatter",),
}  # fmt: skip
RULES = {**table(TABLE), operator.getitem: moving(picked), PAD_ROWS: moving(padded_rows, fill=0)}
