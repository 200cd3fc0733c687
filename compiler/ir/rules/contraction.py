"""Matrix products: bilinear, contracting a dimension."""

from __future__ import annotations

from functools import partial
from typing import Any

from compiler.ir.rules.builders import (
    Rule,
    aligned,
    converted,
    labelled,
    opaque,
    product,
    table,
    with_addend,
)
from compiler.ir.rules.meaning import Call, Labels, Meaning, Term


def multiplied(call: Call, left: str, right: str) -> Meaning:
    """The product of numpy's ``@``: batches are broadcast, a vector has no row or column."""
    i, j = call.operand(left), call.operand(right)
    rows: Labels = ("m",) if len(call.shapes[i]) > 1 else ()
    columns: Labels = ("n",) if len(call.shapes[j]) > 1 else ()
    sizes = call.result[: len(call.result) - len(rows) - len(columns)]
    batch = _batch(len(sizes))
    batches = [aligned(call.shapes[x][:-2], sizes, batch) for x in (i, j)]
    operands = {i: (*batches[0], *rows, "k"), j: (*batches[1], "k", *columns)}
    stretched = any(None in batch_labels for batch_labels in batches)
    key = ("matmul",) if stretched else None
    return product(call, operands, (*batch, *rows, *columns), key=key)


def _batch(count: int) -> Labels:
    return tuple(f"b{d}" for d in range(count))


def added(call: Call, left: str, right: str) -> Meaning:
    """Addmm and its like: beta * self + alpha * product."""
    return with_addend(call, multiplied(call, left, right), "self")


def linear(call: Call) -> Meaning:
    """Input @ weight.T + bias, over the last dimension; a vector as weight has no columns."""
    return with_addend(call, _without_bias(call))


def _without_bias(call: Call) -> Meaning:
    i, j = call.operand("input"), call.operand("weight")
    batch = _batch(len(call.shapes[i]) - 1)
    columns: Labels = ("n",) if len(call.shapes[j]) > 1 else ()
    return product(call, {i: (*batch, "k"), j: (*columns, "k")}, (*batch, *columns))


def einsum(call: Call) -> Meaning:
    """A product written out; ``...``, diagonals and stretched sizes have no factors."""
    everything = tuple(range(len(call.shapes)))
    unknown = Term(everything, map=(call.key,))
    inputs, arrow, output = str(call.arguments["equation"]).replace(" ", "").partition("->")
    written = inputs.split(",")
    sizes: dict[str, Any] = {}
    plain = bool(arrow) and "." not in inputs and all(len(set(s)) == len(s) for s in written)
    for letters, shape in zip(written if plain else (), call.shapes, strict=plain):
        plain &= all(
            sizes.setdefault(c, size) == size for c, size in zip(letters, shape, strict=True)
        )
    if not plain or converted(call):
        return Meaning(terms=None if converted(call) else (unknown,))
    return product(call, {i: tuple(written[i]) for i in everything}, tuple(output))


def outer(call: Call) -> Meaning:
    """Every element of one vector times every element of another."""
    right = next(i for name in ("vec2", "other") if (i := call.index(name)) is not None)
    return product(call, {call.operand("self"): ("m",), right: ("n",)}, ("m", "n"))


def grouped(call: Call) -> Meaning:
    """grouped_mm: rows (or experts) of one operand times the expert of each; linear in both.

    Which rows meet which expert is decided by the offsets, the same for every block of columns.
    """
    left, right, offsets = call.operand("self"), call.operand("mat2"), call.index("offs")
    if call.index("bias") is not None:
        return Meaning()
    labels: tuple[Labels, Labels, Labels] = {
        (2, 3): ((None, "k"), (None, "k", "n"), (None, "n")),
        (3, 3): (("e", "m", "k"), ("e", "k", "n"), ("e", "m", "n")),
        (3, 2): ((None, "m", "k"), ("k", None), ("m", None)),
        (2, 2): (("m", None), (None, "n"), (None, "m", "n")),
    }[len(call.shapes[left]), len(call.shapes[right])]
    fixed = () if offsets is None else (offsets,)
    key = ("grouped",) if fixed else None
    return product(call, {left: labels[0], right: labels[1]}, labels[2], key=key, fixed=fixed)


def scaled(call: Call) -> Meaning:
    """_scaled_mm: (scale_a * self) @ (scale_b * mat2) + bias, linear in all factors at once.

    A scale is one number, or one for each row (column) of the result; other layouts leave every
    dimension whole. A scale of the result quantizes it.
    """
    rows, columns = call.result
    operands: dict[int, Labels] = {
        call.operand("self"): ("m", "k"),
        call.operand("mat2"): ("k", "n"),
    }
    plain = call.index("scale_result") is None
    for name, label, vector in (("scale_a", "m", (rows, 1)), ("scale_b", "n", (1, columns))):
        for i in call.every(name):
            operands[i] = tuple(None if size == 1 else label for size in call.shapes[i])
            plain &= operands[i].count(label) == 0 or call.shapes[i] == vector
    if not plain:
        return Meaning()
    term, dims = Term(tuple(operands), map=("scaled",)), labelled(call, operands, ("m", "n"))
    return with_addend(call, Meaning(terms=(term,), dims=dims, casts=True))


def convolution(call: Call) -> Meaning:
    """Bilinear in input and weight; samples and output channels are rows, positions are whole.

    Input channels are contracted where there is one group of them and no bias.
    """
    i, j = call.operand("input"), call.operand("weight")
    single = call.arguments.get("groups", 1) == 1
    rank, transposed = len(call.shapes[j]), bool(call.arguments.get("transposed"))
    inside, outside = ("c", "o") if single else (None, None)
    batch: Labels = ("b",) if len(call.shapes[i]) == rank else ()
    place: Labels = (None,) * (rank - 2)
    filters: Labels = (inside, outside) if transposed else (outside, inside)
    operands = {i: (*batch, inside, *place), j: (*filters, *place)}
    result = (*batch, outside, *place)
    return with_addend(call, product(call, operands, result, key=call.key), labels=(outside,))


TABLE: dict[Rule, tuple[str, ...]] = {
    partial(multiplied, left="self", right="other"): ("matmul",),
    partial(multiplied, left="self", right="mat2"): ("mm.default", "bmm.default"),
    partial(multiplied, left="self", right="vec"): ("mv",),
    partial(multiplied, left="self", right="tensor"): ("dot",),
    partial(added, left="mat1", right="mat2"): ("addmm.default",),
    partial(added, left="batch1", right="batch2"): ("baddbmm.default",),
    partial(added, left="mat", right="vec"): ("addmv",),
    linear: ("linear",),
    einsum: ("einsum.default",),
    outer: ("outer",),
    grouped: ("_grouped_mm",),
    scaled: ("_scaled_mm", "_scaled_mm_v2"),
    convolution: ("conv1d", "conv2d", "conv3d", "convolution"),
    opaque: ("_scaled_grouped_mm", "_scaled_grouped_mm_v2"),
}
RULES = table(TABLE)

PRODUCTS = table(
    {
        partial(multiplied, left="mat1", right="mat2"): ("addmm.default",),
        partial(multiplied, left="batch1", right="batch2"): ("baddbmm.default",),
        partial(multiplied, left="mat", right="vec"): ("addmv",),
        _without_bias: ("linear",),
    }
)
"""Ops that add to a product -> the rule of the product, which may be cut where it contracts."""
