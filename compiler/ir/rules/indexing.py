"""Ops that read or write through index tensors, and ops that make such indices (routing)."""

from __future__ import annotations

from collections.abc import Callable

from compiler.ir.rules.build import Rule, keeping, linear_map, pointwise, table, whole_but
from compiler.ir.rules.meaning import Call, Dims, Labels, Meaning, Term


def embedding(call: Call) -> Meaning:
    """Rows of weight by indices: linear in the table, row by row in the indices."""
    weight, ids = call.operand("weight"), call.operand("indices")
    rows: Labels = tuple(range(len(call.shapes[ids])))
    labels = {weight: (None, "h"), ids: rows}
    dims = Dims(tuple(labels[i] for i in range(2)), ((*rows, "h"),))
    return Meaning(terms=(Term((weight,), map=("embedding",), fixed=(ids,)),), dims=dims)


def index_select(call: Call) -> Meaning:
    """Rows of self along a dimension."""
    dim, rank = call.dim(), len(call.shapes[0])
    labels: Labels = tuple(None if d == dim else d for d in range(rank))
    result: Labels = tuple("i" if d == dim else d for d in range(rank))
    term = Term((0,), map=("index_select", dim), fixed=(call.operand("index"),))
    return Meaning(terms=(term,), dims=Dims((labels, ("i",)), (result,)))


def gather(call: Call) -> Meaning:
    """Elements of self picked along a dimension; linear in self."""
    dim, fixed = call.dim(), (call.operand("index"),)
    term = Term((call.operand("self"),), map=("gather", dim), fixed=fixed)
    same = call.shapes[0][:dim] == call.shapes[1][:dim]
    same &= call.shapes[0][dim + 1 :] == call.shapes[1][dim + 1 :]
    rank = len(call.shapes[0])
    source: Labels = tuple(None if d == dim else d for d in range(rank))
    taken: Labels = tuple("i" if d == dim else d for d in range(rank))
    return Meaning(terms=(term,), dims=Dims((source, taken), (taken,)) if same else None)


def index(call: Call) -> Meaning:
    """Advanced indexing: linear in self; the dimensions that carry no index keep their place."""
    indices = call.arguments["indices"]
    fixed = tuple(range(1, len(call.shapes)))
    term = Term((0,), map=(call.key,), fixed=fixed)
    rank = len(call.shapes[0])
    leading = len(indices) == 1 and indices[0] is not None
    if not leading:
        return Meaning(terms=(term,))
    kept: Labels = tuple(range(1, rank))
    picked: Labels = tuple(f"i{d}" for d in range(len(call.shapes[1])))
    return Meaning(terms=(term,), dims=Dims(((None, *kept), picked), ((*picked, *kept),)))


def _written(call: Call) -> Dims | None:
    """Writes along ``dim``: the other dimensions of all tensors of full rank correspond."""
    dim, rank = call.dim(), len(call.shapes[0])
    labels: Labels = tuple(None if d == dim else d for d in range(rank))
    everything = tuple(
        labels if len(s) == rank and rank > 1 else (None,) * len(s) for s in call.shapes
    )
    sizes = [s for s in call.shapes if len(s) == rank]
    aligned = all(s[d] == sizes[0][d] for s in sizes for d in range(rank) if d != dim)
    return Dims(everything, (labels,)) if aligned else None


def index_add(call: Call) -> Meaning:
    """Self + alpha * rows of source added at index."""
    alpha = call.arguments.get("alpha", 1)
    if alpha != 1:
        return Meaning()
    held = (call.operand("index"),)
    terms = (
        Term((call.operand("self"),)),
        Term((call.operand("source"),), map=("index_add", call.dim(), call.result), fixed=held),
    )
    return Meaning(terms=terms, dims=_written(call))


def scatter_add(call: Call) -> Meaning:
    """Self + elements of src added at index."""
    held = (call.operand("index"),)
    terms = (
        Term((call.operand("self"),)),
        Term((call.operand("src"),), map=("scatter_add", call.dim(), call.result), fixed=held),
    )
    return Meaning(terms=terms, dims=_written(call))


def overwrite(source: str) -> Rule:
    """Self with elements at index replaced by ``source``; linear in the two together."""

    def rule(call: Call) -> Meaning:
        if call.index(source) is None:
            return Meaning(dims=_written(call))
        return linear_map("self", source, fixed=("index",), dims=_written)(call)

    return rule


def index_put(call: Call) -> Meaning:
    """Self with values put (or added) at several indices; linear in self and values."""
    indices = call.arguments["indices"]
    count = sum(i is not None for i in indices)
    fixed = tuple(range(1, 1 + count))
    values = call.operand("values")
    accumulates = bool(call.arguments.get("accumulate"))
    kept = Term((0,)) if accumulates else Term((0,), map=(call.key, "kept"), fixed=fixed)
    return Meaning(terms=(kept, Term((values,), map=(call.key, "put"), fixed=fixed)))


def sorted_along(call: Call) -> Meaning:
    """sort, argsort, topk: values and indices along one dimension, which is needed whole."""
    return Meaning(dims=whole_but(call, (call.dim(),)))


def one_hot(call: Call) -> Meaning:
    """A new last dimension."""
    labels: Labels = tuple(range(len(call.shapes[0])))
    return Meaning(dims=Dims((labels,), ((*labels, None),)))


def opaque(_: Call) -> Meaning:
    """An uninterpreted function that needs everything whole."""
    return Meaning()


def searched(call: Call) -> Meaning:
    """searchsorted, bucketize: element by element in the values, the boundaries whole."""
    names = ("sorted_sequence", "boundaries")
    held = next(i for n in names if (i := call.index(n)) is not None)
    if len(call.shapes[held]) != 1 or len(call.shapes) != 2:
        return Meaning()
    labels: list[Labels] = [(), ()]
    labels[held] = (None,)
    labels[1 - held] = tuple(range(len(call.result)))
    return Meaning(dims=Dims(tuple(labels), (labels[1 - held],)))


TABLE: dict[Callable[[Call], Meaning], tuple[str, ...]] = {
    embedding: ("embedding",),
    index_select: ("index_select",),
    gather: ("gather",),
    index: ("index", "_unsafe_index"),
    index_add: ("index_add",),
    scatter_add: ("scatter_add",),
    overwrite("src"): ("scatter",),
    overwrite("source"): ("index_copy",),
    index_put: ("index_put", "_unsafe_index_put"),
    sorted_along: ("sort", "argsort", "topk", "cummax", "cummin"),
    one_hot: ("one_hot",),
    opaque: ("bincount", "histc", "nonzero", "masked_select", "unique_dim", "masked_scatter"),
    searched: ("searchsorted", "bucketize"),
    keeping("dim"): ("softmax", "log_softmax", "_softmax", "_log_softmax", "glu"),
    pointwise: ("isin", "bitwise_count"),
}
RULES = table(TABLE)
