"""Which computations may get any rows, and why others may not."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import comb
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from compiler.analysis.expert_regions import region
from compiler.capture import capture_ranks
from compiler.check.row_ownership import Owners, owners
from compiler.ir.collectives import Kind, collectives
from compiler.ir.placement import Replicate, Varying

RANKS, EXPERTS, HERE, CHOSEN, HIDDEN = 4, 16, 4, 3, 8
Body = Callable[["Block", Tensor, Tensor, Tensor], Tensor]


class Block(nn.Module):
    """Routed experts, dealt out to ranks, with an all_reduce; ``body`` computes the partial sum."""

    def __init__(self, body: Body, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.body = body
        self.gate = nn.Linear(HIDDEN, EXPERTS, bias=False, dtype=dtype)
        self.experts = nn.Parameter(torch.empty(HERE, HIDDEN, HIDDEN, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        weights, ids = torch.topk(torch.sigmoid(self.gate(x)), CHOSEN)
        partial = self.body(self, x, ids, weights)
        dist.all_reduce(partial)
        return partial

    def first(self) -> int:
        return dist.get_rank() * HERE


def owned_rows(self: Block, ids: Tensor) -> tuple[Tensor, Tensor]:
    local = ids - self.first()
    owned = (local >= 0) & (local < HERE)
    return torch.where(owned, local, HERE), owned


def sorted_rows(self: Block, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    local, owned = owned_rows(self, ids)
    expert = local.flatten()
    order = torch.argsort(expert, stable=True)
    ends = torch.searchsorted(expert[order], torch.arange(HERE), right=True, out_int32=True)
    rows = torch.nn.functional.grouped_mm(x[order // CHOSEN], self.experts, offs=ends)
    rows = rows[torch.argsort(order)]
    rows = torch.where(owned.view(-1, 1), rows, 0).view(*ids.shape, -1)
    return (rows * weights.unsqueeze(-1)).sum(1)


def table_rows(self: Block, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    local, owned = owned_rows(self, ids)
    chosen = self.experts[local.flatten().clamp(max=HERE - 1)]
    rows = torch.bmm(x.repeat_interleave(CHOSEN, dim=0).unsqueeze(1), chosen).squeeze(1)
    scaled = torch.where(owned, weights, 0).unsqueeze(-1)
    return (rows.view(*ids.shape, -1) * scaled).sum(1)


def looped(self: Block, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    total = torch.zeros_like(x)
    for e in range(HERE):
        chosen = torch.where(ids == self.first() + e, weights, 0).sum(1, keepdim=True)
        total = total + (x @ self.experts[e]) * chosen
    return total


def with_a_shared_expert(self: Block, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    return table_rows(self, x, ids, weights) + x @ self.experts[0]


def centred(self: Block, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    return table_rows(self, x - x.mean(0), ids, weights) + 0 * x.mean(0) * self.experts[0, 0]


def mixing(self: Block, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    rows = table_rows(self, x, ids, weights)
    return rows - (rows + self.experts[0, 0]).mean(0) * 0


def shifted(self: Block, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    local, owned = owned_rows(self, ids)
    order = torch.argsort(local.flatten(), stable=True)
    rows = (x[order // CHOSEN] * self.experts[0, 0])[order]  # not the inverse
    rows = torch.where(owned.view(-1, 1), rows, 0).view(*ids.shape, -1)
    return (rows * weights.unsqueeze(-1)).sum(1)


def wrong_tokens(self: Block, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    local, owned = owned_rows(self, ids)
    order = torch.argsort(local.flatten(), stable=True)
    rows = (x[order // (CHOSEN + 1)] * self.experts[0, 0])[torch.argsort(order)]
    rows = torch.where(owned.view(-1, 1), rows, 0).view(*ids.shape, -1)
    return (rows * weights.unsqueeze(-1)).sum(1)


def every_other(self: Block, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    owned = torch.remainder(ids - dist.get_rank(), RANKS) == 0
    scaled = torch.where(owned, weights, 0).sum(1, keepdim=True)
    return (x @ self.experts[0]) * scaled


def filled_by_rank(self: Block, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    _, owned = owned_rows(self, ids)  # zero on the first rank, and a rank of its own on the others
    scaled = torch.where(owned, weights, float(dist.get_rank())).sum(1, keepdim=True)
    return (x @ self.experts[0]) * scaled


def computed_ids(self: Block, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    _, owned = owned_rows(self, (weights * EXPERTS).long())
    return (x @ self.experts[0]) * torch.where(owned, weights, 0).sum(1, keepdim=True)


def by_row(self: Block, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    owned = (ids.sum(1, keepdim=True) - self.first() >= 0).expand_as(ids)
    return (x @ self.experts[0]) * torch.where(owned, weights, 0).sum(1, keepdim=True)


def in_order(self: Block, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The expert of every entry, and an order of entries by it."""
    expert = owned_rows(self, ids)[0].flatten()
    return expert, torch.argsort(expert, stable=True)


def scaled(x: Tensor, entries: Tensor) -> Tensor:
    return x * entries.view(x.shape[0], -1).sum(1, keepdim=True)


def sorted_twice(self: Block, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    expert, order = in_order(self, ids)
    return scaled(x, torch.argsort(expert[order], stable=True))


def grouped(right: bool, by: int) -> Body:
    def body(self: Block, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        expert, order = in_order(self, ids)
        keys = expert * by
        other = order if by == 1 else torch.argsort(keys, stable=True)
        ends = torch.searchsorted(keys[other], torch.arange(HERE), right=right, out_int32=True)
        rows = torch.nn.functional.grouped_mm(x[order // CHOSEN], self.experts, offs=ends)
        return rows[torch.argsort(order)].view(*ids.shape, -1).sum(1)

    return body


def of_two_choices(self: Block, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    _, others = torch.topk(self.gate(x), CHOSEN)
    return looped(self, x, ids, weights) + looped(self, x, others, weights)


def found(body: Body, tokens: int = 6, **options: Any) -> Owners | str:
    graph = capture_ranks(
        lambda: Block(body, **options),
        lambda: ((torch.ones(tokens, HIDDEN, dtype=options.get("dtype", torch.bfloat16)),), {}),
        RANKS,
        inputs={"gate.weight": Replicate(), "experts": Varying()},
    ).graph
    (reduction,) = [c for _, c in collectives(graph.graph) if c.kind is Kind.ALL_REDUCE]
    groups = graph.mesh.group(reduction.group)
    inner = region(graph, reduction.operand, groups)
    assert inner is not None
    return owners(graph, groups, inner.inputs, inner.nodes)


@pytest.mark.parametrize("body", [sorted_rows, table_rows, looped])
def test_experts_however_they_are_written(body: Body) -> None:
    known = found(body)
    assert isinstance(known, Owners), known
    assert known.first == (0, 4, 8, 12)
    assert known.end == (4, 8, 12, 16)
    assert (known.known, known.per_row) == (EXPERTS, CHOSEN)


def test_experts_may_be_dealt_out_over_one_axis_and_sliced_over_another() -> None:
    def mixed(self: Block, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        local = ids - dist.get_rank() // 2 * 8
        owned = (local >= 0) & (local < 8)
        return (x @ self.experts[0]) * torch.where(owned, weights, 0).sum(1, keepdim=True)

    known = found(mixed)
    assert isinstance(known, Owners), known
    assert known.first == (0, 0, 8, 8)
    assert known.end == (8, 8, 16, 16)
    both_halves = 2 * (1 - Fraction(comb(8, 3), comb(16, 3)))
    assert known.copies == 2 * both_halves


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (with_a_shared_expert, "every rank computes all rows"),
        (mixing, "mixes rows"),
        (shifted, "picks rows"),
        (wrong_tokens, "does not give the tokens of ordered entries"),
        (every_other, "not an interval"),
        (filled_by_rank, "every rank computes all rows"),
        (computed_ids, "nothing says how large ids may be"),
        (by_row, "is not a function of single ids"),
        (of_two_choices, "2 inputs hold ids"),
        (sorted_twice, "sorts what is ordered already"),
        (grouped(right=False, by=1), "does not say where each expert's entries end"),
        (grouped(right=True, by=-1), "multiplies rows by matrices of other experts"),
        (lambda b, x, ids, w: scaled(x, torch.argsort(ids - b.first(), stable=True)),
         "sorts within more than one dimension"),
        (lambda b, x, ids, w: scaled(x, in_order(b, ids)[1] + 1),
         "computes with positions of rows"),
        (lambda b, x, ids, w: scaled(x, in_order(b, ids)[0][in_order(b, ids)[1]]),
         "regroups ordered rows"),
        (lambda b, x, ids, w: scaled(x, x[in_order(b, ids)[1] // CHOSEN].repeat_interleave(2, 0)),
         "repeats ordered rows"),
        (lambda b, x, ids, w: scaled(x, b.experts.view(-1)[in_order(b, ids)[1]]),
         "picks rows by position from what has none"),
        (lambda b, x, ids, w: scaled(x, x[in_order(b, ids)[1] // CHOSEN,
                                          in_order(b, ids)[1] // CHOSEN]),
         "is not indexed by one list of rows"),
        (lambda b, x, ids, w: x[torch.argsort(ids[:, 0] - b.first(), stable=True)],
         "not one row per token, in the order of tokens"),
        (lambda b, x, ids, w: torch.renorm(x * b.experts[0, 0], 2, 0, 1.0),
         "has no rule that keeps rows apart"),
        (lambda b, x, ids, w: scaled(x, (x * b.experts[0, 0]).view(HIDDEN, -1).t().contiguous()),
         "does not count rows"),
    ],
)  # fmt: skip
def test_refused(body: Body, why: str) -> None:
    assert why in str(found(body))


def test_of_several_masks_the_first_is_blamed() -> None:
    """Whatever the order of addresses: one message for one model, on every rank."""

    def chained(self: Block, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for e in range(16):
            sums = ids.sum(1, keepdim=True) == self.first() + e
            chosen = torch.where(sums.expand_as(ids), weights, 0).sum(1, keepdim=True)
            total = total + (x @ self.experts[0]) * chosen
        return total

    assert found(chained) == "%expand is not a function of single ids"


def test_fixed_sizes_are_refused() -> None:
    assert "number of rows is fixed" in str(found(table_rows, tokens=1))


def test_copies_are_counted_over_all_choices() -> None:
    known = Owners(None, (0, 4), (4, 8), 8, 2)  # type: ignore[arg-type]
    assert known.copies == 2 * (1 - Fraction(comb(4, 2), comb(8, 2)))
