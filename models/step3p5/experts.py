"""Routed experts: every (token, chosen expert) pair is a row; each expert multiplies its rows.

Two ways to do this, chosen by dtype alone. bfloat16 sorts rows by expert and runs grouped matrix
products, on CUDA, CPU and meta. Other dtypes, which grouped products do not trace in, gather the
weights of each row instead: exact and traceable, but memory grows as rows * hidden * inner, so it
is for small models.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPED_ALIGNMENT_BYTES = 16  # grouped products need rows of operands aligned to this


def swiglu(gate: Tensor, up: Tensor, limit: float | None) -> Tensor:
    """silu(gate) * up; with a limit, silu is cut from above only and up on both sides."""
    activation = F.silu(gate)
    if limit is not None:
        activation = activation.clamp(max=limit)
        up = up.clamp(-limit, limit)
    return activation * up


class GroupedLinear(nn.Module):
    """One linear map per expert. weight: [experts, out, in]."""

    def __init__(self, experts: int, in_features: int, out_features: int, **factory: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, out_features, in_features, **factory))

    def grouped(self, rows: Tensor, offsets: Tensor) -> Tensor:
        """Expert e maps rows offsets[e-1] to offsets[e]; rows past the last are left undefined."""
        return F.grouped_mm(rows, self.weight.transpose(-2, -1), offs=offsets)

    def batched(self, rows: Tensor, expert: Tensor) -> Tensor:
        """Expert ``expert[i]`` maps row i."""
        return torch.bmm(self.weight[expert], rows.unsqueeze(-1)).squeeze(-1)


class Experts(nn.Module):
    """The experts (or slices of experts) that one rank holds.

    Attributes:
        num_experts: experts with weights here.
        limit: clamp of SwiGLU, or None.
    """

    def __init__(
        self, num_experts: int, hidden: int, inner: int, limit: float | None, **factory: Any
    ) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.limit = limit
        self.gate_proj = GroupedLinear(num_experts, hidden, inner, **factory)
        self.up_proj = GroupedLinear(num_experts, hidden, inner, **factory)
        self.down_proj = GroupedLinear(num_experts, inner, hidden, **factory)

    def expert_rows(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """Output of each chosen expert times its weight.

        Weights scale what the down projection reads, which is narrower than what it gives.

        Args:
            x: [tokens, hidden].
            ids: [tokens, top_k], int64, in 0..num_experts; num_experts stands for an expert that
                is not here, and the output of its rows is undefined.
            weights: [tokens, top_k], of any floating type.

        Returns:
            [tokens * top_k, hidden], in the order of ``ids.flatten()``.
        """
        if x.dtype is torch.bfloat16:
            return self._grouped_rows(x, ids, weights)
        return self._batched_rows(x, ids, weights)

    def _grouped_rows(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        expert = ids.flatten().to(torch.int32)  # half the passes of a sort of int64
        order = torch.argsort(expert, stable=True)
        numbers = torch.arange(self.num_experts, device=x.device, dtype=torch.int32)
        offsets = torch.searchsorted(expert[order], numbers, right=True, out_int32=True)
        rows = x[order // ids.shape[1]]
        gate, up = self.gate_proj.grouped(rows, offsets), self.up_proj.grouped(rows, offsets)
        inner = self._weighted(gate, up, weights.flatten()[order])
        return self.down_proj.grouped(inner, offsets)[self.places(order)]

    def places(self, order: Tensor) -> Tensor:
        """Where each number stands in ``order``, [rows]; a second sort would take eight times."""
        numbers = torch.arange(order.shape[0], device=order.device)
        return torch.zeros_like(order).scatter(0, order, numbers)

    def _batched_rows(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        expert = ids.flatten().clamp(max=self.num_experts - 1)
        rows = x.repeat_interleave(ids.shape[1], dim=0)
        gate, up = self.gate_proj.batched(rows, expert), self.up_proj.batched(rows, expert)
        return self.down_proj.batched(self._weighted(gate, up, weights.flatten()), expert)

    def _weighted(self, gate: Tensor, up: Tensor, weights: Tensor) -> Tensor:
        return (swiglu(gate, up, self.limit) * weights.unsqueeze(-1)).to(gate.dtype)
