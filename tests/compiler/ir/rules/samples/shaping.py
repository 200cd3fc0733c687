"""Calls of ops that move elements."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from compiler.ir.row_ops import PAD_ROWS
from tests.compiler.ir.rules.laws import Sample, counts, reals, sample

aten = torch.ops.aten
GOES = "cut down to one element, the dimension would go"
ROWS = "which dimensions keep their rows is not worked out"


def views() -> Iterator[Sample]:
    for op in (aten.view, aten._unsafe_view, aten.reshape, aten.view_copy):
        yield sample(op.default, reals(6, 12), [6, 6, 2])
        yield sample(op.default, reals(1, 6, 4), [24])
        yield sample(op.default, reals(6, 6, 2), [12, 6])
    for op in (aten.unsqueeze, aten.unsqueeze_copy):
        yield sample(op.default, reals(6, 4), 1)
    for op in (aten.squeeze, aten.squeeze_copy):
        yield sample(op.default, reals(6, 1, 4), holds=GOES)
        yield sample(op.dim, reals(6, 1, 4), 1)
        yield sample(op.dim, reals(6, 1, 4), 0, holds=GOES)
        yield sample(op.dims, reals(6, 1, 4, 1), [1, 3])
    yield sample(aten.view.dtype, reals(6, 4), torch.float64)
    yield sample(aten.view.dtype, reals(6, 4), torch.int64)
    yield sample(aten.view.dtype, reals(6, 4), torch.int32, holds=ROWS)
    yield sample(aten.flatten.using_ints, reals(6, 4, 2), 0, 1)
    yield sample(aten.unflatten.int, reals(2, 12, 2), 1, [-1, 2])
    for op in (aten.view_as, aten.reshape_as):
        yield sample(op.default, reals(6, 4), reals(6, 2, 2))
    for op in (aten.expand, aten.broadcast_to, aten.expand_copy):
        yield sample(op.default, reals(6, 1), [2, 6, 4])
    yield sample(aten.expand_as.default, reals(6, 1), reals(2, 6, 4))


def transposes() -> Iterator[Sample]:
    for op in (aten.permute, aten.permute_copy):
        yield sample(op.default, reals(6, 4, 2), [2, 0, -2])
        yield sample(op.default, reals(6, 4), [0, 1])
    for op in (aten.transpose.int, aten.transpose_copy.int, aten.swapdims.default,
               aten.swapaxes.default):  # fmt: skip
        yield sample(op, reals(6, 4, 2), 0, -1)
    yield sample(aten.mT.default, reals(6, 4, 2))
    for op in (aten.t, aten.t_copy, aten.numpy_T):
        yield sample(op.default, reals(6, 4))
        yield sample(op.default, reals(6))


def ranges() -> Iterator[Sample]:
    for op in (aten.slice.Tensor, aten.slice_copy.Tensor):
        yield sample(op, reals(6, 4), 1, 1, 3)
        yield sample(op, reals(6, 4), 0, 0, 2**63 - 1)
        yield sample(op, reals(6, 4), 0, None, None, 2)
        yield sample(op, reals(6, 4), 1, 0, -1)
        yield sample(op, reals(6, 4), -1, -3, -1)
    for op in (aten.narrow, aten.narrow_copy):
        yield sample(op.default, reals(6, 4), 1, 1, 3)
        yield sample(op.default, reals(6, 4), 0, 0, 6)
    for op in (aten.select.int, aten.select_copy.int):
        yield sample(op, reals(6, 4, 2), 1, 2)
        yield sample(op, reals(6, 4), -2, -1)
    for op in (aten.unbind.int, aten.unbind_copy.int):
        yield sample(op, reals(6, 4, 2), 1)
    for op in (aten.split.Tensor, aten.split_copy.Tensor, aten.unsafe_split.Tensor):
        yield sample(op, reals(6, 4), 3, -1)
    for op in (aten.split.sizes, aten.split_with_sizes.default, 
               aten.tensor_split.indices, aten.split_with_sizes_copy.default,
               aten.unsafe_split_with_sizes.default):  # fmt: skip
        yield sample(op, reals(6, 4), [1, 3], 1)
    for op in (aten.chunk.default, aten.tensor_split.sections):
        yield sample(op, reals(6, 4), 2, 0)


def joins() -> Iterator[Sample]:
    for op in (aten.cat, aten.concat, aten.concatenate):
        yield sample(op.default, [reals(6, 2), reals(6, 3), reals(6, 2)], 1)
        yield sample(op.default, [reals(6, 4), counts(6, 4)], -1, refuses="one is converted")
    yield sample(aten.cat.default, [torch.empty(0, dtype=torch.float64), reals(6, 4)], 0,
                 refuses="the empty tensor of the wrong rank adds nothing",
                 holds=ROWS)  # fmt: skip
    yield sample(aten.stack.default, [reals(6, 4), reals(6, 4)], -2)
    yield sample(aten.stack.default, [reals(6, 4), counts(6, 4)], refuses="one is converted")
    yield sample(aten.slice_scatter.default, reals(6, 4), reals(6, 2), 1, 1, 3)
    yield sample(aten.slice_scatter.default, reals(6, 4), reals(6, 4), 1)
    yield sample(aten.select_scatter.default, reals(6, 4), reals(6), 1, 2)


def rest() -> Iterator[Sample]:
    yield sample(aten.constant_pad_nd.default, reals(6, 4, 2), [0, 0, 1, 2])
    yield sample(PAD_ROWS, reals(6, 4), 0, 4)
    yield sample(PAD_ROWS, reals(4, 8), 1, 3)
    yield sample(aten.constant_pad_nd.default, reals(6, 4), [0, -1, 1, 0], 0.0)
    yield sample(aten.constant_pad_nd.default, reals(6, 4), [1, 0], 2)
    yield sample(aten.constant_pad_nd.default, reals(6, 4), [1, 0], float("-inf"),
                 refuses="an infinity adds up to itself, no other number does")  # fmt: skip
    yield sample(aten.constant_pad_nd.default, reals(6, 4), [1, 0], 1.0)
    yield sample(aten.pad.default, reals(6, 4), [1, 0], "constant", None)
    yield sample(aten.pad.default, reals(2, 6, 4), [1, 1], "replicate", refuses="a linear map "
                 "nobody asked for", holds=ROWS)  # fmt: skip
    yield sample(aten.diff.default, reals(6, 4))
    yield sample(aten.diff.default, counts(6, 4), 1, 0, counts(2, 4))
    yield sample(aten.diff.default, reals(6, 4), 2, 1, reals(6, 1), reals(6, 2))
    yield sample(aten.diff.default, reals(6, 4) > 0)
    yield sample(aten.flip.default, reals(6, 4), [0], holds=ROWS)
    yield sample(aten.roll.default, reals(6, 4), [1], [0], holds=ROWS)
    yield sample(aten.repeat.default, reals(6, 4), [2, 1], holds=ROWS)
    yield sample(aten.tile.default, reals(6, 4), [2, 1], holds=ROWS)
    yield sample(aten.tril.default, reals(2, 6, 4), holds=ROWS)
    yield sample(aten.triu.default, reals(2, 6, 4), 1, holds=ROWS)
    yield sample(aten.diagonal.default, reals(2, 6, 4), 0, 1, 2, holds=ROWS)
    yield sample(aten.unfold.default, reals(6, 4), 1, 2, 1, holds=ROWS)
    yield sample(aten.rot90.default, reals(6, 4), holds=ROWS)
    yield sample(aten.repeat_interleave.self_int, reals(6, 4), 2, 1, holds=ROWS)
    yield sample(aten.repeat_interleave.self_Tensor, reals(6, 4), counts(6) + 1, 0, holds=ROWS)
    yield sample(aten.view_as_complex.default, reals(6, 4, 2))
    yield sample(aten.view_as_real.default, torch.complex(reals(6, 4), reals(6, 4)))


SAMPLES = (*views(), *transposes(), *ranges(), *joins(), *rest())
