"""How the ops of ``compiler.ir.fused_ops`` run: which kernel, chosen by payload at every call.

Without a workspace for their group, or for a payload that does not fit it, they run the composition
that they stand for with the group's own collectives. The choice depends on sizes alone: all ranks
choose alike.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.nn.functional import rms_norm

from compiler.errors import KernelError
from compiler.ir.fused_ops import SLOT_BYTES
from compiler.ir.row_ops import padded_rows
from compiler.runtime.host_memory import gathered
from compiler.runtime.kernels.workspace import Workspace

ONE_SHOT_READ_BYTES = 4 << 20
"""Bytes that a rank may read from all ranks together before two shots are faster."""

_workspaces: dict[str, Workspace] = {}
c10d = torch.ops._c10d_functional
Pair = tuple[torch.Tensor, torch.Tensor]


def workspace_for(group: dist.ProcessGroup, slot_bytes: int = SLOT_BYTES) -> Workspace | str:
    """The workspace of a group, made at the first call, which all its ranks make together.

    A later call for more bytes makes a larger one. The former stays: graphs may have been captured
    with its addresses.

    Returns:
        The workspace, smaller than asked for if there was one and a larger could not be made; or
        why this group has none. All ranks get the same.
    """
    name = str(group.group_name)
    former = _workspaces.get(name)
    if former is not None and former.slot_bytes >= slot_bytes:
        return former
    try:
        _workspaces[name] = Workspace.rendezvous(group, slot_bytes=slot_bytes, former=former)
    except KernelError as error:
        return former or f"{error.what}: {error.found}"
    return _workspaces[name]


def serving(group_name: str, x: torch.Tensor) -> Workspace | None:
    """The workspace that serves the payload ``x``, or None."""
    workspace = _workspaces.get(group_name)
    if workspace is None or not x.is_cuda:
        return None
    hidden = x.shape[-1]
    rows = x.numel() // max(hidden, 1)
    return workspace if rows and workspace.refusal(rows, hidden, x.dtype) is None else None


def all_reduce_add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    offset: float,
    group_name: str,
) -> Pair:
    """Runs the op: one kernel for small payloads, an all_reduce and a norm for others."""
    workspace = serving(group_name, x)
    if workspace is None:
        total = c10d.wait_tensor(c10d.all_reduce(x, "sum", group_name))
        return add_norm(total, residual, weight, eps, offset)
    peers, ops = workspace.on_current_stream(), torch.ops.commplan
    if x.numel() * x.element_size() * workspace.world_size <= ONE_SHOT_READ_BYTES:
        fused: Pair = ops.one_shot_all_reduce_add_rms_norm(x, residual, weight, eps, offset, *peers)
        return fused
    return add_norm(ops.two_shot_all_reduce(x, *peers), residual, weight, eps, offset)


def reduce_scatter_add_rms_norm_all_gather(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    offset: float,
    group_size: int,
    group_name: str,
) -> Pair:
    """Runs the op: one kernel."""
    workspace = serving(group_name, x)
    if workspace is None:
        whole = padded_rows(x, 0, group_size)
        share = c10d.wait_tensor(c10d.reduce_scatter_tensor(whole, "sum", group_size, group_name))
        y, h = add_norm(share, residual, weight, eps, offset)
        return gathered(y, group_size, group_name)[: x.shape[0]], h
    fused: Pair = torch.ops.commplan.two_shot_all_reduce_add_rms_norm(
        x, residual, weight, eps, offset, *workspace.on_current_stream()
    )
    return fused


def add_norm(
    total: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, offset: float
) -> Pair:
    """Y and h of one rank, each rounded once from float32."""
    h = total + residual
    wide = torch.promote_types(h.dtype, torch.float32)
    scale = weight.to(wide) + offset
    return rms_norm(h.to(wide), scale.shape, scale, eps).to(h.dtype), h


for _op, _run in (
    ("all_reduce_add_rms_norm", all_reduce_add_rms_norm),
    ("reduce_scatter_add_rms_norm_all_gather", reduce_scatter_add_rms_norm_all_gather),
):
    torch.library.impl(f"commplan::{_op}", ("cpu", "cuda"), _run)
