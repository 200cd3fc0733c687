"""Ops of others that commplan knows: of PyTorch, vLLM, SGLang and TensorRT-LLM AutoDeploy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from compiler.ir.collectives import c10d
from compiler.ir.dialects.registry import CollectiveOp, ComposedOp, Entry
from compiler.ir.rules.opaque import OpaqueOp


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None
) -> torch.Tensor:
    """Normalize in float32, multiply by the weight in its own type, round to that of ``x``."""
    wide = x.to(torch.float32)
    measured = wide if variance_size is None else wide[..., :variance_size]
    y = wide * torch.rsqrt(measured.pow(2).mean(-1, keepdim=True) + epsilon)
    if weight is not None:
        y = y.to(weight.dtype) * weight
    return y.to(x.dtype)


def fused_add_rms_norm(
    x: torch.Tensor, x_residual: torch.Tensor, weight: torch.Tensor | None, epsilon: float,
    variance_size: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Add in float32, round the sum, normalize the sum."""
    total = x.to(torch.float32) + x_residual
    measured = total if variance_size is None else total[..., :variance_size]
    y = total * torch.rsqrt(measured.pow(2).mean(-1, keepdim=True) + epsilon)
    if weight is not None:
        y = y.to(weight.dtype) * weight
    return y.to(x.dtype), total.to(x.dtype)


def coalesced(
    inputs: Sequence[torch.Tensor], reduce_op: str, group_name: str
) -> list[torch.Tensor]:
    """All-reduce every tensor of a list."""
    return [c10d.wait_tensor(c10d.all_reduce(x, reduce_op, group_name)) for x in inputs]


def scattered(
    inputs: Sequence[torch.Tensor], reduce_op: str, group_size: int, group_name: str
) -> list[torch.Tensor]:
    """Reduce-scatter every tensor of a list."""
    return [
        c10d.wait_tensor(c10d.reduce_scatter_tensor(x, reduce_op, group_size, group_name))
        for x in inputs
    ]


def gathered(
    inputs: Sequence[torch.Tensor], group_size: int, group_name: str
) -> list[torch.Tensor]:
    """All-gather every tensor of a list."""
    return [
        c10d.wait_tensor(c10d.all_gather_into_tensor(x, group_size, group_name)) for x in inputs
    ]


PYTORCH: Mapping[str, Entry] = {
    "_c10d_functional::all_reduce_coalesced": ComposedOp(coalesced),
    "_c10d_functional::reduce_scatter_tensor_coalesced": ComposedOp(scattered),
    "_c10d_functional::all_gather_into_tensor_coalesced": ComposedOp(gathered),
    "symm_mem::one_shot_all_reduce": CollectiveOp("all_reduce", "input", reduce_op="reduce_op"),
    "symm_mem::two_shot_all_reduce_": CollectiveOp("all_reduce", "input", reduce_op="reduce_op"),
    "symm_mem::multimem_all_reduce_": CollectiveOp("all_reduce", "input", reduce_op="reduce_op"),
    "symm_mem::multimem_one_shot_all_reduce": CollectiveOp(
        "all_reduce", "input", reduce_op="reduce_op"
    ),
}

VLLM: Mapping[str, Entry] = {
    "vllm::all_reduce": CollectiveOp("all_reduce"),
    "vllm::reduce_scatter": CollectiveOp("reduce_scatter", dim="dim", ranks="world_size"),
    "vllm::all_gather": CollectiveOp("all_gather", dim="dim", ranks="world_size"),
    "_C::shm_allreduce": CollectiveOp("all_reduce", "data", group=""),
    "vllm_ir::rms_norm": ComposedOp(rms_norm),
    "vllm_ir::fused_add_rms_norm": ComposedOp(fused_add_rms_norm),
    "vllm::moe_forward": OpaqueOp("t *, t * -> t *", per_rank=True),
    "vllm::moe_forward_shared": OpaqueOp("t *, t * -> t *, t *", per_rank=True),
}

AUTO_DEPLOY: Mapping[str, Entry] = {
    "auto_deploy::torch_dist_all_reduce": CollectiveOp("all_reduce", "t", group=""),
}

OPS: Mapping[str, Entry] = {**PYTORCH, **VLLM, **AUTO_DEPLOY}
