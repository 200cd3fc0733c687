"""Ops that move elements: views, transposes, slices, concatenation, padding.

``as_strided`` and ``_reshape_alias`` have no rule: what they read depends on the strides of their
operand, not on its values alone.
"""

from __future__ import annotations

import operator
from dataclasses import replace
from functools import partial
from typing import Any

import sympy
import torch

from compiler.ir.row_ops import PAD_ROWS
from compiler.ir.rules.builders import (
    Rule,
    aligned,
    converted,
    factors,
    linear_map,
    mapped,
    moving,
    pointwise,
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
    return mapped(RESHAPE, Dims((before, *like), (after,)))


def reinterpreted(call: Call) -> Meaning:
    """The same bits as another type, which several elements of a row may make up; or the same."""
    before, after = call.dtypes[0], call.result_dtypes[0]
    if before == after:
        return pointwise(call, (Term((0,)),))
    fits = before is not None and after is not None and before.itemsize == after.itemsize
    return Meaning(dims=whole_but(call, () if fits else (-1,)))


def squeeze(call: Call) -> Meaning:
    """A view; a dimension that would go if it had one element must not be cut down to one."""
    shape = call.shapes[0]
    named = call.arguments.get("dim", tuple(range(len(shape))))
    many = named if isinstance(named, tuple) else (named,)
    squeezed = {int(d) % max(len(shape), 1) for d in many}
    gone = [d for d in squeezed if shape[d : d + 1] == (1,)]
    rank = len(shape)
    dims = Dims((factors(rank, squeezed),), (factors(rank, squeezed, gone),))
    return mapped(RESHAPE, dims)


def expand(call: Call) -> Meaning:
    """Stretches dimensions of size one; to the shape of another tensor, along with that one."""
    every = factors(len(call.result))
    labels = aligned(call.shapes[0], call.result, every)
    like = (every,) * (len(call.shapes) - 1)
    result = every if like else tuple(d if d in labels else None for d in every)
    return mapped(BROADCAST, Dims((labels, *like), (result,)))


def permuted(order: tuple[int, ...]) -> Meaning:
    """Result dimension d is operand dimension ``order[d]``."""
    labels = factors(len(order))
    key = ("permute", order) if order != labels else RESHAPE
    return mapped(key, Dims((labels,), (order,)))


def permute(call: Call) -> Meaning:
    """Reorders dimensions."""
    rank = len(call.shapes[0])
    return permuted(tuple(int(d) % rank for d in call.arguments["dims"]))


def swap(call: Call, first: str | int, second: str | int) -> Meaning:
    """Exchanges two dimensions, given by number or argument name."""
    order = list(range(len(call.shapes[0])))
    i, j = (int(call.arguments[d]) if isinstance(d, str) else d for d in (first, second))
    if len(order) > 1:
        order[i], order[j] = order[j], order[i]
    return permuted(tuple(order))


def reverse(call: Call) -> Meaning:
    """All dimensions in reverse order (t, numpy_T)."""
    return permuted(tuple(reversed(range(len(call.shapes[0])))))


def ranged(call: Call, start: Any, count: Any, step: int = 1) -> object:
    """Return the map to ``count`` indices of dimension ``dim``: the same for the same elements.

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
        return mapped(RESHAPE, whole_but(call, ()))
    start, step = call.arguments.get("start"), call.arguments.get("step", 1)
    key = ranged(call, 0 if start is None else start, call.result[call.dim()], step)
    return mapped(key, whole_but(call, (call.dim(),)))


def select(call: Call) -> Meaning:
    """One index of a dimension, which disappears."""
    return mapped(ranged(call, call.arguments["index"], 1), whole_but(call, (call.dim(),)))


def unbind(call: Call) -> Meaning:
    """Every index of a dimension, one result each."""
    return _parted(call, [(i, 1) for i in range(len(call.result_shapes))])


def split(call: Call) -> Meaning:
    """Consecutive ranges of a dimension, one result each."""
    counts = [shape[call.dim()] for shape in call.result_shapes]
    return _parted(call, [(sum(counts[:i]), count) for i, count in enumerate(counts)])


def _parted(call: Call, ranges: list[tuple[Any, Any]]) -> Meaning:
    """One result for each range (start, count) of a dimension."""
    parts = tuple(ranged(call, start, count) for start, count in ranges)
    return replace(mapped((call.key,), whole_but(call, (call.dim(),))), parts=parts)


def joined(call: Call) -> Meaning:
    """Joins along one dimension, in stack one of its own: jointly linear in all operands."""
    count, rank = len(call.shapes), len(call.result)
    along = (int(call.arguments["dim"]) % rank,)
    labels, ranks = factors(rank, along), set(map(len, call.shapes))
    if ranks not in ({rank}, {rank - 1}):
        return Meaning()
    inside = labels if ranks == {rank} else factors(rank, gone=along)
    terms = (Term((i,), map=(call.key, call.shapes, i)) for i in range(count))
    return Meaning(
        terms=None if converted(call) else tuple(terms), dims=Dims((inside,) * count, (labels,))
    )


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
    return mapped((call.key,), whole_but(call, (call.dim(),)))


def rearranged(call: Call) -> Meaning:
    """Any other linear map of all elements (flip, roll, repeat, tril, …)."""
    return mapped((call.key,), fixed=tuple(range(1, len(call.shapes))))


def paired(call: Call) -> Meaning:
    """Complex numbers as pairs of reals in a last dimension, or the other way round."""
    ranks = len(call.shapes[0]), len(call.result)
    operand, result = (factors(rank, range(min(ranks), rank)) for rank in ranks)
    return replace(mapped((call.key,), Dims((operand,), (result,))), casts=True)


def picked(call: Call) -> Meaning:
    """getitem: one result of an op of several, element by element."""
    labels = factors(len(call.result))
    return mapped(("result", static_key(call.arguments["1"])), Dims((labels,), (labels,)))


def slice_written(call: Call) -> Meaning:
    """slice_scatter: self with a range replaced by src, linear in both; all of it is src."""
    source = call.operand("src")
    is_all = call.shapes[source] == call.result and not converted(call)
    dims = whole_but(call, () if is_all else (call.dim(),))
    dims = Dims(dims.results * 2, dims.results)
    if is_all:
        return mapped(BROADCAST, dims, operand=source)
    return linear_map(call, "self", "src", dims=dims)


def select_written(call: Call) -> Meaning:
    """select_scatter: self with one index of a dimension replaced by src."""
    rank, dim = len(call.result), call.dim()
    labels, written = factors(rank, (dim,)), factors(rank, gone=(dim,))
    return linear_map(call, "self", "src", dims=Dims((labels, written), (labels,)))


MOVES: dict[Rule, tuple[str, ...]] = {
    view: ("view.default", "_unsafe_view", "reshape", "unsqueeze", "flatten.using_ints",
           "unflatten.int", "view_as", "reshape_as", "view_copy.default", "unsqueeze_copy"),
    reinterpreted: ("view.dtype",),
    squeeze: ("squeeze.default", "squeeze.dim", "squeeze.dims", "squeeze_copy"),
    expand: ("expand", "broadcast_to", "expand_as", "expand_copy"),
    permute: ("permute", "permute_copy"),
    partial(swap, first="dim0", second="dim1"): (
        "transpose.int", "transpose_copy.int", "swapdims"),
    partial(swap, first="axis0", second="axis1"): ("swapaxes",),
    partial(swap, first=-2, second=-1): ("mT.default",),
    reverse: ("t", "t_copy", "numpy_T.default"),
    slice_rows: ("slice.Tensor", "slice_copy.Tensor", "narrow.default", "narrow_copy"),
    select: ("select.int", "select_copy.int"),
    unbind: ("unbind.int", "unbind_copy.int"),
    split: ("split.Tensor", "split.sizes", "split_with_sizes", "chunk", "split_copy.Tensor",
            "split_with_sizes_copy", "unsafe_split.Tensor", "unsafe_split_with_sizes",
            "tensor_split.sections", "tensor_split.indices"),
    joined: ("cat.default", "concat.default", "concatenate.default", "stack"),
    rearranged: ("flip", "roll", "repeat", "tile", "diagonal", "unfold", "rot90",
                 "repeat_interleave.self_int", "repeat_interleave.self_Tensor"),
    slice_written: ("slice_scatter",),
    select_written: ("select_scatter",),
}  # fmt: skip
TABLE: dict[Rule, tuple[str, ...]] = {
    **{moving(rule): names for rule, names in MOVES.items()},
    moving(rearranged, fill=0): ("tril", "triu"),
    difference: ("diff",),
    pad: ("constant_pad_nd", "pad"),
    paired: ("view_as_real", "view_as_complex"),
}
RULES = {**table(TABLE), operator.getitem: moving(picked), PAD_ROWS: moving(padded_rows, fill=0)}
