"""Norm and feed-forward blocks. Hidden states are flat: [tokens, hidden]."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import Step3p5Config
from .experts import Experts, swiglu
from .layer_config import LayerConfig
from .parallel import RankGroup, RowParallelLinear


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type of norms, rotary angles and the router: float32, or the model's if wider."""
    return torch.promote_types(dtype, torch.float32)


class GemmaRMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * (1 + weight) over the last dimension; weight is zero-centred.

    Computed in float32 and cast back once, after the weight.
    """

    def __init__(self, dims: int, eps: float, **factory: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dims, **factory))

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes the last dimension of x: [..., dims]."""
        inner = wide(x.dtype)
        weight = 1.0 + self.weight.to(inner)
        return F.rms_norm(x.to(inner), weight.shape, weight, self.eps).to(x.dtype)


class MLP(nn.Module):
    """Dense feed-forward block, or the shared expert: column-parallel, then row-parallel."""

    def __init__(
        self, hidden: int, inner: int, limit: float | None, ranks: RankGroup, **factory: Any
    ) -> None:
        super().__init__()
        self.limit = limit
        self.gate_proj = nn.Linear(hidden, inner // ranks.size, bias=False, **factory)
        self.up_proj = nn.Linear(hidden, inner // ranks.size, bias=False, **factory)
        self.down_proj = RowParallelLinear(inner // ranks.size, hidden, ranks, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, hidden] to [tokens, hidden], both replicated."""
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x), self.limit))


class MoE(Experts):
    """Routed experts: each token goes to its ``moe_top_k`` best experts.

    The router is replicated and runs in float32, so all ranks choose the same experts. With
    ``by_expert`` a rank holds whole experts, its share of them; otherwise it holds a slice of
    every expert. Either way its output is one term of a sum over the ranks.
    """

    def __init__(
        self,
        config: Step3p5Config,
        layer: LayerConfig,
        ranks: RankGroup,
        by_expert: bool,
        **factory: Any,
    ) -> None:
        experts, inner = config.moe_num_experts, config.moe_intermediate_size
        if by_expert:
            experts //= ranks.size
        else:
            inner //= ranks.size
        super().__init__(experts, config.hidden_size, inner, layer.routed_limit, **factory)
        self.ranks = ranks
        self.by_expert = by_expert
        self.top_k = config.moe_top_k
        self.scaling_factor = config.moe_router_scaling_factor
        router = factory | {"dtype": wide(factory["dtype"])}
        self.gate = nn.Linear(config.hidden_size, config.moe_num_experts, bias=False, **router)
        self.router_bias = nn.Parameter(torch.empty(config.moe_num_experts, **router))

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Chooses experts for each token.

        The bias takes part in the choice only; weights come from the unbiased scores.

        Args:
            x: [tokens, hidden].

        Returns:
            ids: [tokens, top_k], int64, and their weights: [tokens, top_k], float32.
        """
        scores = torch.sigmoid(self.gate(x.to(self.gate.weight.dtype)))
        ids = torch.topk(scores + self.router_bias, self.top_k, dim=-1).indices
        weights = scores.gather(-1, ids)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return ids, weights * self.scaling_factor

    def places(self, order: Tensor) -> Tensor:
        """As in the base class; of whole experts, as a sort, which shows that rows stay apart.

        A compiler may then send each row to the ranks that own its experts.
        """
        return torch.argsort(order) if self.by_expert else super().places(order)

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, hidden] to [tokens, hidden], both replicated."""
        ids, weights = self.route(x)
        if self.by_expert:
            local = ids - self.ranks.rank * self.num_experts
            owned = (local >= 0) & (local < self.num_experts)
            rows = self.expert_rows(x, torch.where(owned, local, self.num_experts), weights)
            rows = torch.where(owned.view(-1, 1), rows, 0)
        else:
            rows = self.expert_rows(x, ids, weights)
        return self.ranks.all_reduce(rows.view(*ids.shape, -1).sum(1))
