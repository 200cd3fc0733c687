"""Shard a model of transformers as its own plan says, with transformers' own code."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from transformers.distributed import DistributedConfig
from transformers.distributed.expert_parallel import apply_expert_parallelism
from transformers.distributed.tensor_parallel import apply_tensor_parallelism

from tests.families.families import Family

WORLD_SIZE = 4


class Decoder(nn.Module):
    """Logits of token ids, without a cache."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=ids, use_cache=False).logits  # type: ignore[no-any-return]


ON_DTENSORS = frozenset({"embedding_rowwise", "colwise_gather_output"})
"""Styles whose modules compute on DTensors, which torch.export refuses."""


def sharded(
    family: Family, dtype: torch.dtype, experts: str, without: Collection[str] = ()
) -> nn.Module:
    """Return the model as this rank of the default process group has it.

    Args:
        family: what to build.
        dtype: of the parameters.
        experts: transformers' implementation of routed experts.
        without: styles of the plan whose modules are left unsharded.
    """
    model: Any = family.full(dtype, experts)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("tp",))
    config = DistributedConfig(
        tp_size=mesh.size(),
        ep_size=mesh.size() if family.expert_parallel else 1,
        tp_plan=dict(family.plan) or None,
    )
    dense, experts_plan, _ = model._resolve_parallel_plans(config)
    dense = {name: style for name, style in dense.items() if style not in without}
    apply_tensor_parallelism(model, mesh, dense)
    if family.expert_parallel:
        apply_expert_parallelism(model, mesh, mesh, experts_plan, "all_reduce")
    return Decoder(model)
