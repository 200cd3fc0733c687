"""Ops that move elements: views, transposes, slices, concatenation, padding, reductions of a dim."""

from __future__ import annotations

import operator
import sys
from fractions import Fraction
from typing import Any

import torch

from compiler.ir.rules.build import Rule, aligned, linear_map, reshaped, scalar, table, whole_but
from compiler.ir.rules.elementwise import cast
from compiler.ir.rules.meaning import BROADCAST, RESHAPE, Call, Dims, Labels, Meaning, Term


def view(call: Call) -> Meaning:
    """The same elements in the same row-major order."""
    before, after = reshaped(call.shapes[0], call.result)
    others = tuple((None,) * len(s) for s in call.shapes[1:])
    return Meaning(terms=(Term((0,), map=RESHAPE),), dims=Dims((before, *others), (after,)))


def expand(call: Call) -> Meaning:
    """Stretches dimensions of size one."""
    labels = aligned(call.shapes[0], call.result)
    kept = tuple(d if d in labels else None for d in range(len(call.result)))
    others = tuple((None,) * len(s) for s in call.shapes[1:])
    return Meaning(terms=(Term((0,), map=BROADCAST),), dims=Dims((labels, *others), (kept,)))


def permute(call: Call) -> Meaning:
    """Reorders dimensions."""
    rank = len(call.shapes[0])
    order = _order(call, rank)
    labels = tuple(range(rank))
    term = Term((0,), map=("permute", order) if order != labels else RESHAPE)
    return Meaning(terms=(term,), dims=Dims((labels,), (order,)))


def _order(call: Call, rank: int) -> tuple[int, ...]:
    if "dims" in call.arguments:
        return tuple(int(d) % rank for d in call.arguments["dims"])
    order = list(range(rank))
    if rank < 2:
        return tuple(order)
    first = int(call.arguments.get("dim0", 0 if rank == 2 else -2)) % rank
    second = int(call.arguments.get("dim1", 1 if rank == 2 else -1)) % rank
    order[first], order[second] = order[second], order[first]
    return tuple(order)


def slice_rows(call: Call) -> Meaning:
    """A static range of one dimension; the whole range is no op."""
    start, end = call.arguments.get("start") or 0, call.arguments.get("end")
    everything = start == 0 and (
        end is None
        or (isinstance(end, int) and end == sys.maxsize)
        or call.shapes[0] == call.result
    )
    key: object = RESHAPE if everything else (call.key,)
    dims = whole_but(call, () if everything else (call.dim(),))
    return Meaning(terms=(Term((0,), map=key),), dims=dims)


def select(call: Call) -> Meaning:
    """One index of a dimension, which disappears."""
    rank, dim = len(call.shapes[0]), call.dim()
    labels: Labels = tuple(None if d == dim else d for d in range(rank))
    kept = tuple(d for d in range(rank) if d != dim)
    return Meaning(terms=(Term((0,), map=(call.key,)),), dims=Dims((labels,), (kept,)))


def unbind(call: Call) -> Meaning:
    """All indices of a dimension, one result each."""
    one = select(call)
    assert one.dims is not None
    return Meaning(
        terms=one.terms, dims=Dims(one.dims.operands, one.dims.results * len(call.result_shapes))
    )


def split(call: Call) -> Meaning:
    """Consecutive ranges of a dimension, one result each."""
    return Meaning(terms=(Term((0,), map=(call.key,)),), dims=whole_but(call, (call.dim(),)))


def cat(call: Call) -> Meaning:
    """Joins along one dimension: jointly linear in all operands."""
    count, dim = len(call.shapes), call.dim()
    if len(set(call.dtypes)) > 1 or any(len(s) != len(call.result) for s in call.shapes):
        return Meaning()
    terms = tuple(Term((i,), map=(call.key, call.shapes, i)) for i in range(count))
    labels = tuple(None if d == dim else d for d in range(len(call.result)))
    return Meaning(terms=terms, dims=Dims((labels,) * count, (labels,)))


def stack(call: Call) -> Meaning:
    """Joins along a dimension of its own."""
    count, rank = len(call.shapes), len(call.result)
    dim = int(call.arguments["dim"]) % rank
    terms = tuple(Term((i,), map=(call.key, count, i)) for i in range(count))
    inside: Labels = tuple(d for d in range(rank) if d != dim)
    result: Labels = tuple(None if d == dim else d for d in range(rank))
    return Meaning(terms=terms, dims=Dims((inside,) * count, (result,)))


def pad(call: Call) -> Meaning:
    """Pads with a constant: linear for zero."""
    widths = call.arguments["pad"]
    rank = len(call.shapes[0])
    touched = {rank - 1 - i // 2 for i, width in enumerate(widths) if width != 0}
    zero = scalar(call.arguments.get("value") or 0) == 0
    terms = (Term((0,), map=(call.key,)),) if zero else None
    return Meaning(terms=terms, dims=whole_but(call, touched))


def rearranged(call: Call) -> Meaning:
    """Any other fixed linear map of all elements (flip, roll, repeat, tril, …)."""
    return Meaning(terms=(Term((0,), map=(call.key,)),))


def _reduced(call: Call, name: str = "dim") -> tuple[int, ...]:
    rank, dims = len(call.shapes[0]), call.arguments.get(name)
    if dims is None or dims == ():
        return tuple(range(rank))
    many: tuple[Any, ...] = dims if isinstance(dims, tuple) else (dims,)
    return tuple(sorted(int(d) % max(rank, 1) for d in many))


def _reduction_dims(call: Call, reduced: tuple[int, ...], *, contracts: bool) -> Dims:
    rank = len(call.shapes[0])
    operand: Labels = tuple(None if d in reduced and not contracts else d for d in range(rank))
    keepdim = len(call.result) == rank
    result: Labels = tuple(
        None if d in reduced else d for d in range(rank) if keepdim or d not in reduced
    )
    others = tuple((None,) * len(s) for s in call.shapes[1:])
    return Dims((operand, *others), (result,) * len(call.result_shapes))


def summed(call: Call) -> Meaning:
    """Sum over dimensions: a contraction with ones."""
    reduced = _reduced(call)
    if call.dtypes[0] != call.result_dtypes[0]:
        return Meaning(dims=_reduction_dims(call, reduced, contracts=False))
    term = Term((0,), map=("sum", reduced, call.shapes[0]))
    return Meaning(terms=(term,), dims=_reduction_dims(call, reduced, contracts=True))


def mean(call: Call) -> Meaning:
    """Mean over dimensions: linear, but no sum over blocks, since each block has its own count."""
    reduced = _reduced(call)
    exact = call.dtypes[0] == call.result_dtypes[0]
    term = Term((0,), map=("mean", reduced, call.shapes[0]))
    return Meaning(
        terms=(term,) if exact else None, dims=_reduction_dims(call, reduced, contracts=False)
    )


def reduced_nonlinearly(call: Call) -> Meaning:
    """A maximum, product, norm or the like over dimensions."""
    return Meaning(dims=_reduction_dims(call, _reduced(call), contracts=False))


def cumulative(call: Call) -> Meaning:
    """Running sum along a dimension."""
    if call.dtypes[0] != call.result_dtypes[0]:
        return Meaning(dims=whole_but(call, (call.dim(),)))
    return Meaning(terms=(Term((0,), map=(call.key,)),), dims=whole_but(call, (call.dim(),)))


def picked(call: Call) -> Meaning:
    """getitem: one result of an op of several, element by element."""
    rank = len(call.result)
    labels: Labels = tuple(range(rank))
    return Meaning(terms=(Term((0,), map=("result", call.arguments["1"])),),
                   dims=Dims((labels,), (labels,)))  # fmt: skip


def slice_written(call: Call) -> Meaning:
    """slice_scatter / select_scatter: self with a range replaced by src, linear in both."""
    dims = whole_but(call, (call.dim(),))
    return linear_map("self", "src", dims=lambda _: dims)(call)


TABLE: dict[Rule, tuple[str, ...]] = {
    view: ("view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "flatten",
           "unflatten", "view_as", "reshape_as", "view_copy", "unsqueeze_copy", "squeeze_copy"),
    expand: ("expand", "broadcast_to", "expand_as", "expand_copy"),
    permute: ("permute", "transpose", "t", "mT", "numpy_T", "permute_copy", "transpose_copy",
              "t_copy", "swapaxes", "swapdims"),
    slice_rows: ("slice", "slice_copy"),
    select: ("select", "select_copy"),
    unbind: ("unbind", "unbind_copy"),
    split: ("split", "split_with_sizes", "chunk", "split_copy", "split_with_sizes_copy",
            "narrow", "tensor_split", "hsplit", "narrow_copy"),
    cat: ("cat", "concat", "concatenate"),
    stack: ("stack",),
    pad: ("constant_pad_nd",),
    rearranged: ("flip", "roll", "repeat", "tril", "triu", "diagonal", "unfold", "rot90", "tile",
                 "as_strided"),
    summed: ("sum",),
    mean: ("mean",),
    reduced_nonlinearly: ("amax", "amin", "all", "any", "prod", "var", "std", "max", "min",
                          "argmax", "argmin", "linalg_vector_norm", "norm", "logsumexp",
                          "var_mean"),
    cumulative: ("cumsum",),
    slice_written: ("slice_scatter", "select_scatter"),
}  # fmt: skip

RULES = {**table(TABLE), operator.getitem: picked}
for _op in (torch.ops.aten.max.other, torch.ops.aten.min.other, torch.ops.aten.view.dtype):
    del RULES[_op]

__all__ = ["RULES", "Fraction", "cast"]
