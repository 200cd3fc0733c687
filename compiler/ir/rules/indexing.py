"""Ops that read or write through index tensors, and ops that make such indices (routing).

Writes with an index that occurs twice are taken to resolve the same way on every rank.
"""

from __future__ import annotations

from functools import partial
from itertools import zip_longest
from typing import Any, NamedTuple

import torch

from compiler.ir.rules.builders import (
    Rule,
    aligned,
    along_dim,
    coefficient,
    converted,
    factors,
    labelled,
    linear_map,
    mapped,
    moving,
    opaque,
    scalar,
    table,
)
from compiler.ir.rules.meaning import Call, Dims, Labels, Meaning, Term


def embedding(call: Call) -> Meaning:
    """Rows of weight by indices: linear in the table, row by row in the indices."""
    weight, ids = call.operand("weight"), call.operand("indices")
    rows = factors(len(call.shapes[ids]))
    dims = labelled(call, {weight: (None, "h"), ids: rows}, (*rows, "h"))
    return mapped(("embedding",), dims, operand=weight, fixed=(ids,))


def index_select(call: Call) -> Meaning:
    """Rows of self along a dimension."""
    dim, rank, read = call.dim(), len(call.shapes[0]), call.operand("index")
    dims = None
    if rank and len(call.shapes[read]):
        labels = factors(rank, (dim,))
        dims = Dims((labels, ("i",)), (_at(dim, labels),))
    return mapped(("index_select", dim), dims, operand=call.operand("self"), fixed=(read,))


def gather(call: Call) -> Meaning:
    """Elements of self picked along a dimension; linear in self."""
    dim, rank, (source, taken) = call.dim(), len(call.shapes[0]), call.shapes
    dims = None
    if len(taken) == rank and all(source[d] == taken[d] for d in range(rank) if d != dim):
        labels = factors(rank, (dim,))
        dims = Dims((labels, _at(dim, labels)), (_at(dim, labels),))
    key, fixed = ("gather", dim), (call.operand("index"),)
    return mapped(key, dims, operand=call.operand("self"), fixed=fixed)


def _at(dim: int, labels: Labels) -> Labels:
    """Return ``labels`` with the factor of the indices at ``dim``."""
    return (*labels[:dim], "i", *labels[dim + 1 :])


class Indexed(NamedTuple):
    """Labels of advanced indexing, and the sizes of what the indices pick together."""

    before: Labels
    picked: Labels
    after: Labels
    of_indices: tuple[Labels, ...]
    sizes: tuple[Any, ...]

    @property
    def operand(self) -> Labels:
        """Those of the tensor that is indexed."""
        return (*self.before, *(None,) * len(self.of_indices), *self.after)


def _indexed(call: Call) -> Indexed | None:
    """Return the labels; None unless indices are numbers, and on neighbouring dimensions."""
    indices = [None if x is None else x.index for x in call.arguments["indices"]]
    read = [i for i in indices if i is not None]
    if not read:
        return None
    first, count = indices.index(read[0]), len(read)
    plain = indices[first : first + count] == read
    plain &= all(call.dtypes[i] in (torch.int32, torch.int64) for i in read)
    shapes = [call.shapes[i] for i in read]
    columns = list(zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1))
    together = [{*column} - {1} or {1} for column in columns]
    if not plain or any(len(sizes) > 1 for sizes in together):
        return None
    sizes = tuple(size for (size,) in reversed(together))
    picked = tuple(f"i{d}" for d in range(len(sizes)))
    return Indexed(
        factors(first), picked, tuple(range(first + count, len(call.shapes[0]))),
        tuple(aligned(shape, sizes, picked) for shape in shapes), sizes,
    )  # fmt: skip


def index(call: Call) -> Meaning:
    """Advanced indexing: linear in self; the dimensions that carry no index keep their place."""
    read = call.every("indices")
    dims, indexed = None, _indexed(call)
    if indexed is not None:
        result = (*indexed.before, *indexed.picked, *indexed.after)
        dims = Dims((indexed.operand, *indexed.of_indices), (result,))
    return mapped((call.key,), dims, operand=call.operand("self"), fixed=read)


def index_put(call: Call) -> Meaning:
    """Self with values put (or added) at several indices; linear in self and values."""
    read = call.every("indices")
    target, values = call.operand("self"), call.operand("values")
    dims, indexed = None, _indexed(call)
    if indexed is not None:
        before, after, shape = indexed.before, indexed.after, call.shapes[target]
        written = (*shape[: len(before)], *indexed.sizes, *shape[len(shape) - len(after) :])
        put = (*before, *(None,) * len(indexed.sizes), *after)
        put = aligned(call.shapes[values], written, put)
        dims = labelled(call, {target: indexed.operand, values: put}, indexed.operand)
    accumulates = bool(call.arguments.get("accumulate"))
    if converted(call, (values,)) or (accumulates and torch.bool in call.result_dtypes):
        return Meaning(dims=dims)
    kept = Term((target,)) if accumulates else Term((target,), map=(call.key, "kept"), fixed=read)
    return Meaning(terms=(kept, Term((values,), map=(call.key, "put"), fixed=read)), dims=dims)


def _written(call: Call) -> Dims | None:
    """Writes along ``dim``: the other dimensions of all tensors of full rank correspond."""
    dim, rank = call.dim(), len(call.shapes[0])
    labels = factors(rank, (dim,))
    everything = tuple(
        labels if len(s) == rank and rank > 1 else (None,) * len(s) for s in call.shapes
    )
    sizes = [s for s in call.shapes if len(s) == rank]
    same = all(s[d] == sizes[0][d] for s in sizes for d in range(rank) if d != dim)
    return Dims(everything, (labels,)) if same else None


def accumulated(call: Call, source: str) -> Meaning:
    """Self + alpha * elements (or rows) of ``source`` added at index."""
    dims, factor, read = _written(call), coefficient(call, "alpha"), call.operand("index")
    target, added = call.operand("self"), call.operand(source)
    reduction = call.arguments.get("reduce", "sum")
    summed = reduction == "sum" and call.arguments.get("include_self", True)
    mixed = converted(call, (target, added)) or torch.bool in call.result_dtypes
    if factor is None or mixed or not summed:
        return Meaning(dims=dims)
    key = ("accumulate", source, call.dim(), call.result)
    term = Term((added,), map=key, fixed=(read,), coefficient=factor)
    return Meaning(terms=(Term((target,)), term), dims=dims)


def overwritten(call: Call, source: str) -> Meaning:
    """Self with elements (or rows) at index replaced by ``source``; linear in the two together.

    A number as source must be zero.
    """
    dims = _written(call)
    if call.index(source) is not None:
        return linear_map(call, "self", source, fixed=("index",), dims=dims)
    if scalar(call.arguments[source]) != 0:
        return Meaning(dims=dims)
    return linear_map(call, "self", fixed=("index",), dims=dims)


def one_hot(call: Call) -> Meaning:
    """A new last dimension; without a number of classes, its size depends on all elements."""
    if call.arguments["num_classes"] == -1:
        return Meaning()
    labels = factors(len(call.shapes[0]))
    return Meaning(dims=Dims((labels,), ((*labels, None),)))


def located(call: Call, values: str, among: str) -> Meaning:
    """searchsorted, bucketize, isin: element by element in the values, the others whole."""
    read, sequence = call.index(values), call.shapes[call.operand(among)]
    if read is None or (among == "sorted_sequence" and len(sequence) != 1):
        return Meaning()
    labels = factors(len(call.result))
    return Meaning(dims=labelled(call, {read: labels}, labels))


TABLE: dict[Rule, tuple[str, ...]] = {
    moving(embedding): ("embedding",),
    moving(index_select): ("index_select.default",),
    moving(gather): ("gather.default",),
    moving(index): ("index.Tensor", "_unsafe_index.Tensor"),
    index_put: ("index_put.default", "_unsafe_index_put.default"),
    partial(accumulated, source="source"): ("index_add.default",),
    partial(accumulated, source="src"): ("scatter_add.default", "scatter_reduce.two"),
    moving(partial(overwritten, source="src")): ("scatter.src",),
    partial(overwritten, source="value"): ("scatter.value", "index_fill.int_Scalar"),
    moving(partial(overwritten, source="source")): ("index_copy.default",),
    along_dim: (
        "sort.default", "sort.stable", "argsort.default", "argsort.stable", "topk",
        "cummax.default", "cummin.default", "cumprod.default", "logcumsumexp.default",
        "softmax.int", "log_softmax.int", "_softmax", "_log_softmax", "_safe_softmax", "glu",
    ),
    one_hot: ("one_hot",),
    partial(located, values="self", among="sorted_sequence"): ("searchsorted.Tensor",),
    partial(located, values="self", among="boundaries"): ("bucketize.Tensor",),
    partial(located, values="elements", among="test_elements"): ("isin.Tensor_Tensor",),
    opaque: ("bincount", "histc", "nonzero", "masked_select", "masked_scatter", "unique_dim"),
}  # fmt: skip
RULES = table(TABLE)
