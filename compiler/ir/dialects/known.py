# ruff: noqa: N803 -- arguments are called as the ops call them
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


def gather_matmul(
    A: torch.Tensor, Bs: Sequence[torch.Tensor], gather_dim: int, group_name: str, return_A: bool,
    ranks: int,
) -> tuple[torch.Tensor | None, list[torch.Tensor]]:  # fmt: skip
    """Gather a tensor along a dimension, and multiply it by several."""
    whole = c10d.wait_tensor(
        c10d.all_gather_into_tensor(A.movedim(gather_dim, 0), ranks, group_name)
    )
    whole = whole.movedim(0, gather_dim)
    return whole if return_A else None, [whole @ B for B in Bs]


def matmul_scatter(
    A: torch.Tensor, B: torch.Tensor, reduce_op: str, scatter_dim: int, group_name: str, ranks: int
) -> torch.Tensor:
    """Multiply, reduce and scatter the result along a dimension."""
    rows = (A @ B).movedim(scatter_dim, 0)
    own: torch.Tensor = c10d.wait_tensor(
        c10d.reduce_scatter_tensor(rows, reduce_op, ranks, group_name)
    )
    return own.movedim(0, scatter_dim)


STATED = CollectiveOp("all_reduce", reduce_op="reduce_op")
WORLD = CollectiveOp("all_reduce", group="")

PYTORCH: Mapping[str, Entry] = {
    "_c10d_functional_autograd::all_gather_into_tensor": CollectiveOp(
        "all_gather", ranks="group_size"
    ),
    "_c10d_functional_autograd::reduce_scatter_tensor": CollectiveOp(
        "reduce_scatter", ranks="group_size", reduce_op="reduce_op"
    ),
    "symm_mem::one_shot_all_reduce": STATED,
    "symm_mem::one_shot_all_reduce_out": STATED,
    "symm_mem::two_shot_all_reduce_": STATED,
    "symm_mem::multimem_all_reduce_": STATED,
    "symm_mem::multimem_one_shot_all_reduce": STATED,
    "symm_mem::multimem_one_shot_all_reduce_out": STATED,
    "symm_mem::multimem_all_gather_out": CollectiveOp("all_gather"),
    "symm_mem::_low_contention_all_gather": CollectiveOp("all_gather"),
    "symm_mem::_low_contention_reduce_scatter": CollectiveOp(
        "reduce_scatter", reduce_op="reduce_op"
    ),
    "symm_mem::fused_all_gather_matmul": ComposedOp(gather_matmul),
    "symm_mem::fused_matmul_reduce_scatter": ComposedOp(matmul_scatter),
}

ROWS = "hidden_states: t *, router_logits: t *, shared_experts_input: t *, input_ids: t"

VLLM: Mapping[str, Entry] = {
    "vllm::all_reduce": CollectiveOp("all_reduce"),
    "vllm::reduce_scatter": CollectiveOp("reduce_scatter", dim="dim", ranks="world_size"),
    "vllm::all_gather": CollectiveOp("all_gather", dim="dim", ranks="world_size"),
    "_C::shm_allreduce": WORLD,
    "vllm_ir::rms_norm": ComposedOp(rms_norm),
    "vllm_ir::fused_add_rms_norm": ComposedOp(fused_add_rms_norm),
    "vllm::moe_forward": OpaqueOp(f"{ROWS} -> t *", per_rank=True),
    "vllm::moe_forward_shared": OpaqueOp(f"{ROWS} -> t *, t *", per_rank=True),
}

SGLANG: Mapping[str, Entry] = {
    "sglang::inplace_all_reduce": CollectiveOp("all_reduce"),
    "sglang::outplace_all_reduce": CollectiveOp("all_reduce"),
    "sglang::reg_all_gather_into_tensor": CollectiveOp("all_gather"),
    "sglang::reg_reduce_scatter_tensor": CollectiveOp("reduce_scatter"),
}

AUTO_DEPLOY: Mapping[str, Entry] = {
    "auto_deploy::torch_dist_all_reduce": WORLD,
    "auto_deploy::trtllm_dist_all_reduce": WORLD,
    "auto_deploy::torch_dist_all_gather": CollectiveOp("all_gather", group="", dim="dim"),
    "auto_deploy::trtllm_dist_all_gather": CollectiveOp("all_gather", group="", dim="dim"),
}

OPS: Mapping[str, Entry] = {**PYTORCH, **VLLM, **SGLANG, **AUTO_DEPLOY}
"""Name of an op -> what it means; read from the ops' sources."""
