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


def quantized() -> Iterator[Sample]:
    """Products of single bytes with scales that are powers of two: exact in single precision."""

    def bytes_of(*shape: int) -> torch.Tensor:
        return reals(*shape).to(torch.float8_e4m3fn)

    def powers(*shape: int) -> torch.Tensor:
        return 2.0 ** counts(*shape)

    one, rows, columns = (), (6, 1), (1, 2)
    each = [(rows, columns)] if scales_rows() else []  # not in the CPU kernel of PyTorch 2.11
    for scales in ((one, one), *each, ((1, 1), (1, 1))):
        x, w, a, b = bytes_of(6, 4), bytes_of(4, 2), *(powers(*s) for s in scales)
        yield sample(aten._scaled_mm.default, x, w, a, b, out_dtype=torch.float32)
    yield sample(aten._scaled_mm.default, x, w, powers(), powers(), reals(2).float(),
                 out_dtype=torch.float32)  # fmt: skip
    yield sample(aten._scaled_mm.default, x, w, powers(), powers(), None, powers(),
                 out_dtype=torch.float32, refuses="a scale of the result is not worked out",
                 holds="a scale of the result is not worked out")  # fmt: skip
    if hasattr(aten, "_scaled_mm_v2") and each:
        yield sample(aten._scaled_mm_v2.default, x, w, [powers(6, 1)], [1], [0], [powers(1, 2)],
                     [1], [0], None, torch.float32)  # fmt: skip


def scales_rows() -> bool:
    """Whether this PyTorch's CPU kernel takes a scale per row and per column."""
    x = torch.ones(2, 2).to(torch.float8_e4m3fn)
    try:
        aten._scaled_mm.default(x, x.t(), torch.ones(2, 1), torch.ones(1, 2), out_dtype=torch.float)
    except RuntimeError:
        return False
    return True


def convolutions() -> Iterator[Sample]:
    """Several groups, positions and filters of every number of dimensions."""
    conv = aten.conv1d.default
    yield sample(conv, reals(2, 4, 6), reals(6, 4, 3))
    yield sample(conv, reals(4, 6), reals(6, 4, 3), reals(6), [1], [2])
    yield sample(conv, reals(2, 4, 6), reals(4, 1, 3), None, [1], [2], [1], 4)
    yield sample(conv, reals(2, 4, 6), reals(4, 1, 3), reals(4), [1], [2], [1], 4)
    yield sample(aten.conv1d.padding, reals(2, 4, 6), reals(6, 4, 3), None, [1], "same")
    yield sample(aten.conv2d.default, reals(2, 4, 6, 6), reals(2, 4, 3, 3), None, [2, 1])
    yield sample(aten.conv2d.padding, reals(2, 4, 6, 6), reals(2, 4, 3, 3), reals(2))
    yield sample(aten.conv3d.default, reals(2, 4, 4, 4, 4), reals(2, 4, 2, 2, 2))
    yield sample(aten.conv3d.padding, reals(2, 4, 4, 4, 4), reals(2, 4, 2, 2, 2))
    rest = ([1], [0], [1], False, [0], 1)
    yield sample(aten.convolution.default, reals(2, 4, 6), reals(6, 4, 3), None, *rest)
    yield sample(aten.convolution.default, reals(2, 4, 6), reals(4, 6, 3), reals(6),
                 [2], [0], [1], True, [0], 1)  # fmt: skip


SAMPLES = (
    *products(),
    *written_out(),
    *quantized(),
    *convolutions(),
    *(grouped() if hasattr(aten, "_grouped_mm") else ()),
)
