"""Shard a model of transformers as its own plan says, with transformers' own code.

``apply_tensor_parallelism`` cuts the weights and replaces ``forward`` of the modules that the plan
names. Two of its styles compute on DTensors, which torch.export refuses; what they compute is
written here on the tensors that a rank holds. All other styles are transformers' own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._functional_collectives import all_gather_tensor
from torch.distributed.device_mesh import init_device_mesh
from transformers.distributed import DistributedConfig
from transformers.distributed.expert_parallel import apply_expert_parallelism
from transformers.distributed.parallel_utils import ALL_PARALLEL_STYLES, _use_local_dtensor_params
from transformers.distributed.tensor_parallel import (
    ColwiseParallel,
    EmbeddingParallel,
    apply_tensor_parallelism,
)

from tests.families.families import Family

WORLD_SIZE = 4


class LocalEmbedding(EmbeddingParallel):
    """embedding_rowwise: rows of this rank's part of the vocabulary, zero for others, summed."""

    def install_forward(self, module: Any, mesh: Any) -> Any:
        lookup, rows = module.forward, module.num_embeddings // mesh.size()
        first = mesh.get_local_rank() * rows

        def forward(ids: torch.Tensor) -> torch.Tensor:
            local = ids - first
            own = (local >= 0) & (local < rows)
            with _use_local_dtensor_params(module):
                found = lookup(torch.where(own, local, 0))
            found = torch.where(own.unsqueeze(-1), found, 0)
            dist.all_reduce(found, group=mesh.get_group())
            return found

        module.forward = forward
        return module


class LocalGather(ColwiseParallel):
    """colwise_gather_output: this rank's features, then those of all ranks side by side."""

    def transform_output_post_forward(self, module: Any, output: Any, mesh: Any) -> Any:
        return all_gather_tensor(output, output.dim() - 1, mesh.get_group())


REPLACED = {"embedding_rowwise": "local_embedding", "colwise_gather_output": "local_gather"}
ALL_PARALLEL_STYLES.register("local_embedding", LocalEmbedding())
ALL_PARALLEL_STYLES.register("local_gather", LocalGather())


class Decoder(nn.Module):
    """Logits of token ids, without a cache."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=ids, use_cache=False).logits  # type: ignore[no-any-return]


def sharded(family: Family, dtype: torch.dtype, experts: str) -> nn.Module:
    """The model as this rank of the default process group holds it."""
    model: Any = family.full(dtype, experts)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("tp",))
    config = DistributedConfig(
        tp_size=mesh.size(),
        ep_size=mesh.size() if family.expert_parallel else 1,
        tp_plan=dict(family.plan) or None,
    )
    dense, experts_plan, _ = model._resolve_parallel_plans(config)
    dense = {name: REPLACED.get(style, style) for name, style in dense.items()}
    apply_tensor_parallelism(model, mesh, dense)
    if family.expert_parallel:
        apply_expert_parallelism(model, mesh, mesh, experts_plan, "all_reduce")
    return Decoder(model)
