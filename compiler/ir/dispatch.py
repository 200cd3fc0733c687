"""Ops that send rows to the ranks which compute them, and add up what comes back.

    dispatch_rows   each rank's rows, to every rank that owns one of the rows' ids
    combine_rows    every rank's results for the rows it was sent, to where they came from; added up

Together they are what all_gather and reduce_scatter are to a computation that treats rows alike
and gives zero for rows of which a rank owns no id: less is sent, and the results are the same.
The checker shows that of the computation (``compiler.check.gathered_rows``).

``dispatch_rows`` gives the rows received, tensor by tensor, and what ``combine_rows`` needs:

    places   [rows sent], int64; row t sent to rank d is d * rows + t
    counts   [2, ranks], int64, on the host; rows sent to each rank, rows received from each

How many rows are sent and received depends on ids. Graphs state the rows that there are in all
ranks together, ``total``; those behind them, which ranks add to share rows evenly, may be anything.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

torch.library.define(
    "commplan::dispatch_rows",
    "(Tensor[] rows, Tensor ids, int[] first, int[] end, SymInt total, str group_name) -> Tensor[]",
)
torch.library.define(
    "commplan::combine_rows",
    "(Tensor partial, Tensor places, Tensor counts, SymInt rows, str group_name) -> Tensor",
)

DISPATCH_ROWS = torch.ops.commplan.dispatch_rows.default
COMBINE_ROWS = torch.ops.commplan.combine_rows.default


def needed(ids: torch.Tensor, first: Sequence[int], end: Sequence[int]) -> torch.Tensor:
    """Return which rank needs which row: [ranks, rows], bool.

    Args:
        ids: [rows, …], integers.
        first: least id that each rank owns.
        end: one more than the greatest.
    """
    flat = ids.flatten(1) if ids.dim() > 1 else ids.unsqueeze(1)
    owned = [((flat >= a) & (flat < b)).any(1) for a, b in zip(first, end, strict=True)]
    return torch.stack(owned)


def added(back: torch.Tensor, places: torch.Tensor, ranks: int, rows: int) -> torch.Tensor:
    """Sum results for rows over the ranks that gave them, in float32 or wider, rank by rank.

    Args:
        back: [rows sent, …].
        places: [rows sent], see above.
        ranks: number of ranks.
        rows: number of rows before they were sent.
    """
    every = back.new_zeros(ranks * rows, *back.shape[1:])
    every[places] = back
    wide = torch.promote_types(back.dtype, torch.float32) if back.is_floating_point() else None
    return every.view(ranks, rows, *back.shape[1:]).sum(0, dtype=wide).to(back.dtype)


def _received(
    rows: Sequence[torch.Tensor],
    ids: torch.Tensor,
    first: Sequence[int],
    end: Sequence[int],
    total: int | torch.SymInt,
    group_name: str,
) -> list[torch.Tensor]:
    received = [x.new_empty([total, *x.shape[1:]]) for x in rows]
    places = ids.new_empty([total], dtype=torch.int64)
    return [*received, places, torch.empty([2, len(first)], dtype=torch.int64)]


def _combined(
    partial: torch.Tensor,
    places: torch.Tensor,
    counts: torch.Tensor,
    rows: int | torch.SymInt,
    group_name: str,
) -> torch.Tensor:
    return partial.new_empty([rows, *partial.shape[1:]])


torch.library.register_fake("commplan::dispatch_rows", _received)
torch.library.register_fake("commplan::combine_rows", _combined)
