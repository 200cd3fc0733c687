"""Calls of ops that read or write through indices, and of routing."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tests.compiler.ir.rules.laws import GENERATOR, Sample, counts, masks, reals, rough, sample

aten = torch.ops.aten
ADDS = "counts of blocks add up, but an uninterpreted function cannot be a sum of blocks"
SELECTED = "linear in the values, but nobody asked"
SIZES = "the tensors differ in sizes"


def distinct(rows: int, among: int, count: int) -> torch.Tensor:
    """Per row, ``count`` different indices."""
    drawn = torch.stack([torch.randperm(among, generator=GENERATOR)[:count] for _ in range(rows)])
    return drawn


def reads() -> Iterator[Sample]:
    yield sample(aten.embedding.default, reals(8, 4), counts(2, 6, below=8) + 0, 3)
    yield sample(aten.embedding.default, reals(8, 4), torch.tensor(5))
    yield sample(aten.index_select.default, reals(6, 4), 0, counts(6, below=6))
    yield sample(aten.index_select.default, reals(6, 4), -1, torch.tensor(2), holds=SIZES)
    yield sample(aten.gather.default, reals(6, 4), 1, counts(6, 2))
    yield sample(aten.gather.default, reals(6, 4), 1, counts(4, 2), holds=SIZES)
    yield sample(aten.gather.default, reals(6), 0, counts(4, below=6))
    for op in (aten.index.Tensor, aten._unsafe_index.Tensor):
        yield sample(op, reals(6, 4), [counts(2, 6, below=6)])
        yield sample(op, reals(6, 4), [None, counts(6)])
        yield sample(op, reals(2, 6, 4), [None, counts(6), counts(6)])
        yield sample(op, reals(6, 4), [counts(6, 1), counts(4)])
        yield sample(op, reals(6, 4, 2), [counts(2, 1, below=6), counts(4)])
        yield sample(op, reals(4, 2, 4), [counts(6), None, counts(6)], holds="not neighbours")
    yield sample(aten.index.Tensor, reals(6, 4), [torch.tensor([True, False] * 3)],
                 holds="how many rows are read is data")  # fmt: skip


def writes() -> Iterator[Sample]:
    for op in (aten.index_put.default, aten._unsafe_index_put.default):
        rows = torch.tensor([4, 0, 2, 5])
        yield sample(op, reals(6, 4), [rows], reals(4, 4))
        yield sample(op, reals(6, 4), [rows], reals(4), True)
        yield sample(op, reals(6, 4), [None, torch.tensor([3, 1])], reals(6, 2))
        yield sample(op, reals(6, 4), [rows, torch.tensor([0, 1, 2, 3])], reals(4))
        yield sample(op, reals(6, 4, 2), [rows.view(4, 1), torch.tensor([1, 3])], reals(4, 2, 2))
        yield sample(op, reals(6, 4), [masks(6, 4)], reals())
    yield sample(aten.index_put.default, reals(6, 4) > 9, [torch.tensor([1, 1])],
                 torch.tensor([[True, False], [False, True]]).repeat(1, 2), True,
                 refuses="partial sums of booleans are nothing")  # fmt: skip
    yield sample(aten.index_add.default, reals(6, 4), 0, counts(8, below=6), reals(8, 4))
    yield sample(aten.index_add.default, reals(6, 4), 1, counts(2), reals(6, 2), alpha=-2)
    yield sample(aten.scatter_add.default, reals(6, 4), 1, counts(6, 2), reals(6, 2))
    yield sample(aten.scatter_add.default, reals(6, 4), 1, counts(6, 2), reals(6, 4),
                 )  # fmt: skip
    yield sample(aten.scatter_reduce.two, reals(6, 4), 1, counts(6, 2), reals(6, 2), "sum")
    yield sample(aten.scatter_reduce.two, reals(6, 4), 1, counts(6, 2), reals(6, 2), "prod",
                 refuses="linear in self: nobody asked")  # fmt: skip
    yield sample(aten.scatter_reduce.two, reals(6, 4), 1, counts(6, 2), reals(6, 2), "sum",
                 include_self=False, refuses="only the plain sum is worked out")  # fmt: skip
    yield sample(aten.scatter.src, reals(6, 4), 1, distinct(6, 4, 2), reals(6, 2))
    yield sample(aten.scatter.value, reals(6, 4), 1, distinct(6, 4, 2), 1)
    yield sample(aten.scatter.value, reals(6, 4), 1, distinct(6, 4, 2), 0)
    yield sample(aten.index_fill.int_Scalar, reals(6, 4), 1, torch.tensor([1, 2]), 0)
    yield sample(aten.index_fill.int_Scalar, reals(6, 4), 1, torch.tensor([1, 2]), 1)
    yield sample(aten.index_copy.default, reals(6, 4), 0, torch.tensor([4, 1]), reals(2, 4))
    yield sample(aten.index_copy.default, reals(6), 0, torch.tensor([4, 1]), reals(2))


def routes() -> Iterator[Sample]:
    for op in (aten.sort.default, aten.argsort.default, aten.cummax.default, aten.cummin.default,
               aten.cumprod.default, aten.logcumsumexp.default, aten.log_softmax.int,
               aten.softmax.int, aten._safe_softmax.default, aten.glu.default):  # fmt: skip
        yield sample(op, rough(6, 4), 1)
    yield sample(aten.sort.stable, rough(6, 4), stable=True, dim=0)
    yield sample(aten.argsort.stable, rough(6, 4), stable=True, dim=0)
    yield sample(aten.topk.default, rough(6, 4), 2)
    for op in (aten._softmax.default, aten._log_softmax.default):
        yield sample(op, rough(6, 4), -1, False)
    yield sample(aten.one_hot.default, counts(6, 2), 4)
    yield sample(aten.one_hot.default, torch.arange(12).view(6, 2))
    yield sample(aten.searchsorted.Tensor, torch.arange(8.0), reals(6, 4).float() * 4,
                 holds=ADDS)  # fmt: skip
    yield sample(aten.searchsorted.Tensor, torch.arange(24.0).view(6, 4), reals(6, 2).float() * 9,
                 holds="batched boundaries are not worked out")  # fmt: skip
    yield sample(aten.bucketize.Tensor, reals(6, 4).float() * 4, torch.arange(8.0),
                 holds=ADDS)  # fmt: skip
    yield sample(aten.isin.Tensor_Tensor, counts(6, 4, below=9), torch.tensor([1, 1, 2, 3]))
    yield sample(aten.bincount.default, counts(8), None, 4, holds=ADDS)
    yield sample(aten.histc.default, rough(6, 4))
    yield sample(aten.nonzero.default, reals(6, 4) > 0)
    yield sample(aten.masked_select.default, reals(6, 4), masks(6, 4), refuses=SELECTED)
    yield sample(
        aten.masked_scatter.default, reals(6, 4), masks(6, 4), reals(6, 4), refuses=SELECTED
    )
    yield sample(aten.unique_dim.default, counts(6, 4), 0)


SAMPLES = (*reads(), *writes(), *routes())
