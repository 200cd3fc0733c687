"""Ops of engines that are not installed, by the same names, with kernels of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from compiler.ir.dialects import register_ops
from compiler.ir.dialects.registry import REGISTERED, load_installed

c10d = torch.ops._c10d_functional


@contextmanager
def forgotten_entries() -> Iterator[None]:
    """Forget what is declared inside."""
    load_installed()
    before = dict(REGISTERED)
    yield
    REGISTERED.clear()
    register_ops(before)


def define(
    name: str, schema: str, kernel: Callable[..., Any], fake: Callable[..., Any] | None = None
) -> None:
    """Define an op with a CPU kernel, which is run for tensors without data unless one differs."""
    torch.library.define(name, schema)
    torch.library.impl(name, "cpu")(kernel)
    torch.library.register_fake(name)(fake or kernel)


def reduced(x: torch.Tensor, group: str) -> torch.Tensor:
    return c10d.wait_tensor(c10d.all_reduce(x, "sum", group))


def gathered(tensor: torch.Tensor, dim: int, world_size: int, group_name: str) -> torch.Tensor:
    rows = c10d.wait_tensor(c10d.all_gather_into_tensor(tensor, world_size, group_name))
    return torch.cat(rows.chunk(world_size), dim)


def scattered(tensor: torch.Tensor, dim: int, world_size: int, group_name: str) -> torch.Tensor:
    blocks = torch.cat(tensor.chunk(world_size, dim))
    return c10d.wait_tensor(c10d.reduce_scatter_tensor(blocks, "sum", world_size, group_name))


def normalized(
    x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None
) -> torch.Tensor:
    wide = x.float()
    y = wide / (wide.square().mean(-1, keepdim=True) + epsilon).sqrt()
    return (y if weight is None else y.to(weight.dtype) * weight).to(x.dtype)


def experts(
    hidden_states: torch.Tensor, router_logits: torch.Tensor,
    shared_experts_input: torch.Tensor | None, layer_name: str,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    chosen = router_logits.softmax(-1).amax(-1, keepdim=True)
    shared = hidden_states if shared_experts_input is None else shared_experts_input
    return hidden_states * chosen, shared.sin()


def rotate(positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor | None) -> None:
    for x in filter(torch.is_tensor, (query, key)):
        x.mul_(positions.to(x.dtype).cos()[:, None])


SIZES = "int dim, int world_size, str group_name"
define("vllm::all_reduce", "(Tensor tensor, str group_name) -> Tensor", reduced,
       lambda tensor, group_name: torch.empty_like(tensor))  # fmt: skip
define("vllm::all_gather", f"(Tensor tensor, {SIZES}) -> Tensor", gathered)
define("vllm::reduce_scatter", f"(Tensor tensor, {SIZES}) -> Tensor", scattered)
define("vllm_ir::rms_norm",
       "(Tensor x, Tensor? weight, float epsilon, int? variance_size=None) -> Tensor",
       normalized)  # fmt: skip
define("vllm::moe_forward_shared",
       "(Tensor hidden_states, Tensor router_logits, Tensor? shared_experts_input, str layer_name)"
       " -> (Tensor, Tensor)",
       experts)  # fmt: skip
define("_C::shm_allreduce", "(int handle, Tensor(a!) data) -> ()",
       lambda handle, data: data.copy_(reduced(data, "0")), lambda handle, data: None)  # fmt: skip
define("auto_deploy::torch_dist_all_reduce", "(Tensor t, str strategy) -> Tensor",
       lambda t, strategy: reduced(t, "0"), lambda t, strategy: torch.empty_like(t))  # fmt: skip
define("foreign::rotate", "(Tensor positions, Tensor(a!) query, Tensor(b!)? key) -> ()", rotate,
       lambda positions, query, key: None)  # fmt: skip
define("foreign::fused_allreduce", "(Tensor x, str comm) -> Tensor", lambda x, comm: x.clone())
define("foreign::mixed", "(Tensor x, Tensor y) -> Tensor", lambda x, y: x @ y)
