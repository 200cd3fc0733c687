"""Kernels of ``dispatch_rows`` and ``combine_rows``, by all_to_all.

Exact splits, so that no row is dropped and none is sent in vain: the ranks exchange counts first,
and the host waits for them, once per dispatch. A CUDA graph being captured cannot wait: there,
every rank is sent every row, which is the least equal split that never drops one, and as much as
an all_gather sends.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from compiler.ir.dispatch import added, needed

c10d = torch.ops._c10d_functional


def capturing(x: Tensor) -> bool:
    """Whether a CUDA graph is being captured on the device of ``x``."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def _dispatch_rows(
    rows: Sequence[Tensor],
    ids: Tensor,
    first: Sequence[int],
    end: Sequence[int],
    total: int,
    group_name: str,
) -> list[Tensor]:
    ranks, count = len(first), ids.shape[0]
    if capturing(ids):
        counts = torch.full((2, ranks), count)
        places = torch.arange(ranks * count, device=ids.device)
    else:
        wanted = needed(ids, first, end)
        sent = wanted.sum(1)
        received = _exchanged(sent, [1] * ranks, [1] * ranks, group_name)
        counts = torch.stack([sent, received]).cpu()  # the host waits here
        flat = wanted.flatten()
        places = torch.nonzero_static(flat, size=int(counts[0].sum())).squeeze(1)
    sent, taken = counts.tolist()
    packed = _packed([x[places % count] if count else x for x in rows])
    return [*_unpacked(_exchanged(packed, taken, sent, group_name), rows), places, counts]


def _combine_rows(
    partial: Tensor, places: Tensor, counts: Tensor, rows: int, group_name: str
) -> Tensor:
    sent, taken = counts.tolist()
    back = _exchanged(partial.contiguous(), sent, taken, group_name)
    return added(back, places, len(sent), rows)


def _exchanged(x: Tensor, received: list[int], sent: list[int], group_name: str) -> Tensor:
    rows: Tensor = c10d.wait_tensor(c10d.all_to_all_single(x, received, sent, group_name))
    return rows


def _packed(rows: Sequence[Tensor]) -> Tensor:
    """Rows of several tensors as rows of bytes, so that one message carries them."""
    return torch.cat([_as_table(x).contiguous().view(torch.uint8) for x in rows], dim=1)


def _unpacked(table: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    widths = [_as_table(x).shape[1] * x.dtype.itemsize for x in like]
    parts = zip(torch.split(table, widths, dim=1), like, strict=True)
    copies = ((p.clone(memory_format=torch.contiguous_format), x) for p, x in parts)  # aligned
    return [p.view(x.dtype).view(len(table), *x.shape[1:]) for p, x in copies]


def _as_table(x: Tensor) -> Tensor:
    return x.flatten(1) if x.dim() > 1 else x.unsqueeze(1)


torch.library.impl("commplan::dispatch_rows", ("cpu", "cuda"), _dispatch_rows)
torch.library.impl("commplan::combine_rows", ("cpu", "cuda"), _combine_rows)
