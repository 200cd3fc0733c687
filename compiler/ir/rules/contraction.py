"""Matrix products: bilinear, contracting a dimension."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from compiler.ir.rules.build import Rule, aligned, coefficient, einsum
from compiler.ir.rules.meaning import Call, Dims, Labels, Meaning, Term

aten = torch.ops.aten


def linear(call: Call) -> Meaning:
    """Input @ weight.T + bias, over the last dimension."""
    product = einsum("...k,nk->...n", "input", "weight")(call)
    bias = call.index("bias")
    return product if bias is None else with_addend(call, product, bias, coefficient_of_addend=None)


def with_addend(
    call: Call, product: Meaning, addend: int, *, coefficient_of_addend: str | None = "beta"
) -> Meaning:
    """``product`` scaled by alpha plus an addend scaled by beta and broadcast."""
    alpha = coefficient(call, "alpha")
    beta = coefficient(call, coefficient_of_addend or "")
    if alpha is None or beta is None or product.terms is None or product.dims is None:
        return Meaning()
    labels: list[Labels] = list(product.dims.operands)
    result = product.dims.results[0]
    labels[addend] = tuple(
        None if d is None else result[d] for d in aligned(call.shapes[addend], call.result)
        if d is None or isinstance(d, int)
    )  # fmt: skip
    scaled = tuple(replace(t, coefficient=t.coefficient * alpha) for t in product.terms)
    terms = (Term((addend,), coefficient=beta), *scaled)
    return Meaning(terms=terms, dims=Dims(tuple(labels), (result,)))


def added(spec: str, *names: str) -> Rule:
    """Addmm and its like: beta * self + alpha * product."""

    def rule(call: Call) -> Meaning:
        return with_addend(call, einsum(spec, *names)(call), call.operand("self"))

    return rule


def matmul(call: Call) -> Meaning:
    """The batched product of numpy; vectors and broadcast batches have no factors."""
    left, right = map(len, call.shapes)
    if right == 2 and left >= 2:
        return einsum("...k,kn->...n", "self", "other")(call)
    if left == right and left > 2 and call.shapes[0][:-2] == call.shapes[1][:-2]:
        return einsum("...mk,...kn->...mn", "self", "other")(call)
    return Meaning(terms=(Term((0, 1), map=("matmul",)),))


def dot(call: Call) -> Meaning:
    """Products with vectors (dot, mv)."""
    spec = {1: "k,k->", 2: "mk,k->m"}[len(call.shapes[0])]
    names = [a for a, x in call.arguments.items() if call.index(a) is not None and x is not None]
    return einsum(spec, *names)(call)


def grouped(call: Call) -> Meaning:
    """grouped_mm: rows (or experts) of one operand times the expert of each; linear in both.

    Which rows meet which expert is decided by the offsets, the same for every block of columns.
    """
    left, right = len(call.shapes[0]), len(call.shapes[1])
    if call.index("bias") is not None:
        return Meaning()
    spec = {
        (2, 3): ".k,.kn->.n",
        (3, 3): "...mk,...kn->...mn",
        (3, 2): ".mk,k.->m.",
        (2, 2): "m.,.n->.mn",
    }[left, right]
    names = [n for n in ("self", "mat2", "mat_a", "mat_b") if call.index(n) is not None]
    return einsum(spec, *names, also_fixed=("offs",))(call)


RULES: dict[object, Rule] = {
    aten.mm.default: einsum("mk,kn->mn", "self", "mat2"),
    aten.bmm.default: einsum("bmk,bkn->bmn", "self", "mat2"),
    aten.matmul.default: matmul,
    aten.linear.default: linear,
    aten.addmm.default: added("mk,kn->mn", "mat1", "mat2"),
    aten.baddbmm.default: added("bmk,bkn->bmn", "batch1", "batch2"),
    aten.addmv.default: added("mk,k->m", "mat", "vec"),
    aten.mv.default: dot,
    aten.dot.default: dot,
}
OPTIONAL: dict[str, Callable[[Call], Meaning]] = {"_grouped_mm": grouped, "grouped_mm": grouped}
RULES |= {getattr(aten, n).default: rule for n, rule in OPTIONAL.items() if hasattr(aten, n)}
