"""Ops that read or write through index tensors, and ops that make such indices (routing).

Writes with an index that occurs twice are taken to resolve the same way on every rank.
"""

from __future__ import annotations

import torch

from compiler.ir.rules.builders import (
    Rule,
    aligned,
    along_dim,
    coefficient,
    converted,
    linear_map,
    moving,
    opaque,
    scalar,
    table,
    unlabelled,
)
from compiler.ir.rules.meaning import Call, Dims, Labels, Meaning, Term


def embedding(call: Call) -> Meaning:
    """Rows of weight by indices: linear in the table, row by row in the indices."""
    weight, ids = call.operand("weight"), call.operand("indices")
    labels = list(unlabelled(call))
    labels[weight] = (None, "h")
    labels[ids] = tuple(range(len(call.shapes[ids])))
    term = Term((weight,), map=("embedding",), fixed=(ids,))
    return Meaning(terms=(term,), dims=Dims(tuple(labels), ((*labels[ids], "h"),)))


def index_select(call: Call) -> Meaning:
    """Rows of self along a dimension."""
    dim, rank, read = call.dim(), len(call.shapes[0]), call.operand("index")
    term = Term((call.operand("self"),), map=("index_select", dim), fixed=(read,))
    if rank == 0 or len(call.shapes[read]) == 0:
        return Meaning(terms=(term,))
    labels: Labels = tuple(None if d == dim else d for d in range(rank))
    result: Labels = tuple("i" if d == dim else d for d in range(rank))
    return Meaning(terms=(term,), dims=Dims((labels, ("i",)), (result,)))


def gather(call: Call) -> Meaning:
    """Elements of self picked along a dimension; linear in self."""
    dim, rank, (source, taken) = call.dim(), len(call.shapes[0]), call.shapes
    term = Term((call.operand("self"),), map=("gather", dim), fixed=(call.operand("index"),))
    if len(taken) != rank or any(source[d] != taken[d] for d in range(rank) if d != dim):
        return Meaning(terms=(term,))
    labels: Labels = tuple(None if d == dim else d for d in range(rank))
    picked: Labels = tuple("i" if d == dim else d for d in range(rank))
    return Meaning(terms=(term,), dims=Dims((labels, picked), (picked,)))


def _indexed(call: Call) -> tuple[int, int, int] | None:
    """First indexed dimension, their count and the rank of the indices.

    None unless the indices are numbers, of one shape, and on neighbouring dimensions.
    """
    indices = [None if x is None else x.index for x in call.arguments["indices"]]
    read = [i for i in indices if i is not None]
    if not read:
        return None
    first = indices.index(read[0])
    plain = indices[first : first + len(read)] == read
    plain &= all(call.dtypes[i] in (torch.int32, torch.int64) for i in read)
    shapes = {call.shapes[i] for i in read}
    return (first, len(read), len(shapes.pop())) if plain and len(shapes) == 1 else None


def index(call: Call) -> Meaning:
    """Advanced indexing: linear in self; the dimensions that carry no index keep their place."""
    read = tuple(x.index for x in call.arguments["indices"] if x is not None)
    term = Term((call.operand("self"),), map=(call.key,), fixed=read)
    indexed = _indexed(call)
    if indexed is None:
        return Meaning(terms=(term,))
    first, count, rank = indexed
    before: Labels = tuple(range(first))
    after: Labels = tuple(range(first + count, len(call.shapes[0])))
    picked: Labels = tuple(f"i{d}" for d in range(rank))
    operands = ((*before, *(None,) * count, *after), *(picked,) * count)
    return Meaning(terms=(term,), dims=Dims(operands, ((*before, *picked, *after),)))


def index_put(call: Call) -> Meaning:
    """Self with values put (or added) at several indices; linear in self and values."""
    read = tuple(x.index for x in call.arguments["indices"] if x is not None)
    target, values = call.operand("self"), call.operand("values")
    dims, indexed = None, _indexed(call)
    if indexed is not None:
        first, count, rank = indexed
        shape, last = call.shapes[target], first + count
        written = (*shape[:first], *call.shapes[read[0]], *shape[last:])
        before, after = tuple(range(first)), tuple(range(last, len(shape)))
        labels = list(unlabelled(call))
        labels[target] = (*before, *(None,) * count, *after)
        full: Labels = (*before, *(None,) * rank, *after)
        labels[values] = aligned(call.shapes[values], written, full)
        dims = Dims(tuple(labels), (labels[target],))
    accumulates = bool(call.arguments.get("accumulate"))
    if converted(call, (values,)) or (accumulates and torch.bool in call.result_dtypes):
        return Meaning(dims=dims)
    kept = Term((target,)) if accumulates else Term((target,), map=(call.key, "kept"), fixed=read)
    return Meaning(terms=(kept, Term((values,), map=(call.key, "put"), fixed=read)), dims=dims)


def _written(call: Call) -> Dims | None:
    """Writes along ``dim``: the other dimensions of all tensors of full rank correspond."""
    dim, rank = call.dim(), len(call.shapes[0])
    labels: Labels = tuple(None if d == dim else d for d in range(rank))
    everything = tuple(
        labels if len(s) == rank and rank > 1 else (None,) * len(s) for s in call.shapes
    )
    sizes = [s for s in call.shapes if len(s) == rank]
    same = all(s[d] == sizes[0][d] for s in sizes for d in range(rank) if d != dim)
    return Dims(everything, (labels,)) if same else None


def accumulated(source: str) -> Rule:
    """Self + alpha * elements (or rows) of ``source`` added at index."""

    def rule(call: Call) -> Meaning:
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

    return rule


def overwritten(source: str) -> Rule:
    """Self with elements (or rows) at index replaced by ``source``; linear in the two together.

    A number as source must be zero.
    """

    def rule(call: Call) -> Meaning:
        dims = _written(call)
        if call.index(source) is not None:
            return linear_map(call, "self", source, fixed=("index",), dims=dims)
        if scalar(call.arguments[source]) != 0:
            return Meaning(dims=dims)
        return linear_map(call, "self", fixed=("index",), dims=dims)

    return rule


def one_hot(call: Call) -> Meaning:
    """A new last dimension; without a number of classes, its size depends on all elements."""
    if call.arguments["num_classes"] == -1:
        return Meaning()
    labels: Labels = tuple(range(len(call.shapes[0])))
    return Meaning(dims=Dims((labels,), ((*labels, None),)))


def located(values: str, among: str) -> Rule:
    """searchsorted, bucketize, isin: element by element in the values, the others whole."""

    def rule(call: Call) -> Meaning:
        read, among_operand = call.index(values), call.operand(among)
        sliced = among == "sorted_sequence" and len(call.shapes[among_operand]) != 1
        if read is None or sliced:
            return Meaning()
        labels = list(unlabelled(call))
        labels[read] = tuple(range(len(call.result)))
        return Meaning(dims=Dims(tuple(labels), (labels[read],)))

    return rule


TABLE: dict[Rule, tuple[str, ...]] = {
    moving(embedding): ("embedding",),
    moving(index_select): ("index_select.default",),
    moving(gather): ("gather.default",),
    moving(index): ("index.Tensor", "_unsafe_index.Tensor"),
    index_put: ("index_put.default", "_unsafe_index_put.default"),
    accumulated("source"): ("index_add.default",),
    accumulated("src"): ("scatter_add.default", "scatter_reduce.two"),
    moving(overwritten("src")): ("scatter.src",),
    overwritten("value"): ("scatter.value", "index_fill.int_Scalar"),
    moving(overwritten("source")): ("index_copy.default",),
    along_dim: (
        "sort.default", "sort.stable", "argsort.default", "argsort.stable", "topk",
        "cummax.default", "cummin.default", "cumprod.default", "logcumsumexp.default",
        "softmax.int", "log_softmax.int", "_softmax", "_log_softmax", "_safe_softmax", "glu",
    ),
    one_hot: ("one_hot",),
    located("self", "sorted_sequence"): ("searchsorted.Tensor",),
    located("self", "boundaries"): ("bucketize.Tensor",),
    located("elements", "test_elements"): ("isin.Tensor_Tensor",),
    opaque: ("bincount", "histc", "nonzero", "masked_select", "masked_scatter", "unique_dim"),
}  # fmt: skip
RULES = table(TABLE)
