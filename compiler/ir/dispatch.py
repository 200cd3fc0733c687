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

To send rows is to gather and scatter them (``ROWS``) only around a computation that treats rows
alike, which is the checker's to show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from compiler.ir import access
from compiler.ir.fused_ops import Composition
from compiler.ir.row_ops import RowSharing

aten = torch.ops.aten

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
    rows: Sequence[torch.Tensor], ids: torch.Tensor, first: Sequence[int], *rest: Any
) -> list[torch.Tensor]:
    _, total, _ = rest
    received = [x.new_empty([total, *x.shape[1:]]) for x in rows]
    places = ids.new_empty([total], dtype=torch.int64)
    return [*received, places, torch.empty([2, len(first)], dtype=torch.int64)]


def _combined(partial: torch.Tensor, *rest: Any) -> torch.Tensor:
    _, _, rows, _ = rest
    return partial.new_empty([rows, *partial.shape[1:]])


torch.library.register_fake("commplan::dispatch_rows", _received)
torch.library.register_fake("commplan::combine_rows", _combined)


def gathered_rows(
    rows: Sequence[fx.Node],
    ids: fx.Node,
    first: Sequence[int],
    end: Sequence[int],
    total: int | fx.Node,
    group: str,
) -> tuple[fx.Node, ...]:
    """Write ``dispatch_rows`` where every rank is sent every row."""
    sharing, ranks = RowSharing(group, len(first)), len(first)
    count = access.value(total) if isinstance(total, fx.Node) else total
    places = ids.graph.call_function(aten.arange.default, (total,))
    counts = ids.graph.call_function(aten.zeros.default, ([2, ranks],), {"dtype": torch.int64})
    for node, sizes in ((places, [count]), (counts, [2, ranks])):
        node.meta = {**ids.meta, "val": access.tensor(ids).new_empty(sizes, dtype=torch.int64)}
    return *(sharing.gather(x, count, 0, total) for x in rows), places, counts


def scattered_rows(
    partial: fx.Node, places: fx.Node, counts: fx.Node, rows: int | fx.Node, group: str
) -> tuple[fx.Node, ...]:
    """Write ``combine_rows`` where every rank was sent every row."""
    sharing = RowSharing(group, int(access.shape(counts)[1]))
    return (sharing.scatter(partial, access.shape(partial)[0], 0, "sum"),)


ROWS: Mapping[object, Composition] = {DISPATCH_ROWS: gathered_rows, COMBINE_ROWS: scattered_rows}
"""Op -> a composition, of the op's arguments in the order of its schema."""
