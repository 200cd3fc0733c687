"""Calls of matrix products."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tests.compiler.ir.rules.laws import Sample, counts, reals, sample

aten = torch.ops.aten


def products() -> Iterator[Sample]:
    yield sample(aten.mm.default, reals(6, 4), reals(4, 2))
    yield sample(aten.mm.default, counts(6, 4) + 1, counts(4, 2) + 1)
    yield sample(aten.bmm.default, reals(2, 6, 4), reals(2, 4, 6))
    yield sample(aten.mv.default, reals(6, 4), reals(4))
    yield sample(aten.dot.default, reals(6), reals(6))
    yield sample(aten.outer.default, reals(6), reals(4))
    for left, right in (
        ((6, 4), (4, 2)), ((2, 6, 4), (2, 4, 6)), ((2, 6, 4), (4, 2)), ((6, 4), (2, 4, 6)),
        ((4,), (4, 6)), ((6, 4), (4,)), ((6,), (6,)), ((2, 6, 4), (4,)), ((4,), (2, 4, 6)),
        ((2, 1, 6, 4), (6, 4, 2)), ((1, 6, 4), (2, 4, 6)),
    ):  # fmt: skip
        yield sample(aten.matmul.default, reals(*left), reals(*right))
    yield sample(aten.linear.default, reals(2, 6, 4), reals(6, 4))
    yield sample(aten.linear.default, reals(6, 4), reals(6, 4), reals(6))
    yield sample(aten.linear.default, reals(4), reals(6, 4), reals(6))
    yield sample(aten.linear.default, reals(6, 4), reals(4))
    for addend in ((6, 2), (2,), (6, 1), (1, 2)):
        yield sample(aten.addmm.default, reals(*addend), reals(6, 4), reals(4, 2))
    yield sample(aten.addmm.default, reals(2), reals(6, 4), reals(4, 2), beta=-2, alpha=0.5)
    yield sample(aten.baddbmm.default, reals(2, 1, 6), reals(2, 6, 4), reals(2, 4, 6), alpha=2)
    yield sample(aten.addmv.default, reals(6), reals(6, 4), reals(4), beta=3)


def written_out() -> Iterator[Sample]:
    for equation, *shapes in (
        ("td,edh->eth", (6, 4), (2, 4, 6)), ("i,j->ij", (6,), (4,)), ("ij->ji", (6, 4)),
        ("bqd, bkd -> bqk", (2, 6, 4), (2, 4, 4)), ("ij,j->", (6, 4), (4,)),
        ("ab,bc,cd->ad", (6, 4), (4, 2), (2, 6)),
    ):  # fmt: skip
        yield sample(aten.einsum.default, equation, [reals(*s) for s in shapes])
    shared = "neither dots, diagonals, stretched sizes nor implied outputs are worked out"
    for equation, *shapes in (
        ("...d,dh->...h", (2, 6, 4), (4, 6)), ("ij,jk", (6, 4), (4, 2)), ("ii->i", (4, 4)),
        ("ij,ij->i", (6, 4), (6, 1)),
    ):  # fmt: skip
        holds = "" if equation == "ii->i" else shared
        yield sample(aten.einsum.default, equation, [reals(*s) for s in shapes], holds=holds)


def grouped() -> Iterator[Sample]:
    """Two experts, rows of 16 bytes as the kernel wants them."""

    def draw(*shape: int) -> torch.Tensor:
        return reals(*shape).float()

    offsets = torch.tensor([2, 16], dtype=torch.int32)
    yield sample(aten._grouped_mm.default, draw(16, 16), draw(2, 16, 16), offsets)
    yield sample(aten._grouped_mm.default, draw(2, 16, 16), draw(16, 16), offsets)
    yield sample(aten._grouped_mm.default, draw(16, 16), draw(16, 16), offsets)
    yield sample(aten._grouped_mm.default, draw(2, 16, 16), draw(2, 16, 16))


SAMPLES = (*products(), *written_out(), *(grouped() if hasattr(aten, "_grouped_mm") else ()))
