"""How the ops of ``compiler.ir.fused_ops`` run: which kernel, chosen by payload at every call.

The tables of the group's machine tell (``compiler.cost.fused_kernels``). Without a workspace for
their group, or for a payload that does not fit it, they run the composition that they stand for
with the group's own collectives. The choice depends on sizes alone: all ranks choose alike.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.nn.functional import rms_norm

from compiler.cost import Machine, machine_with
from compiler.cost.fused_kernels import FusedKernel, fused_kernel
from compiler.cost.tables import Fused
from compiler.errors import KernelError
from compiler.ir.fused_ops import SLOT_BYTES, why_unsupported
from compiler.ir.row_ops import padded_rows
from compiler.runtime.host_memory import gathered
from compiler.runtime.kernels import launch, ops
from compiler.runtime.kernels.launch import Norm
from compiler.runtime.kernels.workspace import Workspace

c10d = torch.ops._c10d_functional
Pair = tuple[torch.Tensor, torch.Tensor]


class Served(NamedTuple):
    """A group with a workspace.

    Attributes:
        workspace: its memory.
        machine: whose tables choose kernels; None: none that comes with the package has its GPUs.
        nccl: whether its own collectives are NCCL's.
    """

    workspace: Workspace
    machine: Machine | None
    nccl: bool

    def kernel(self, kind: Fused, x: torch.Tensor) -> FusedKernel:
        """What serves the payload ``x``."""
        ranks = self.workspace.world_size
        return fused_kernel(self.machine, kind, x.nbytes, ranks, composed=self.nccl)


_served: dict[str, Served] = {}


def serve(group_name: str, served: Served) -> None:
    """Has the group's fused ops run so from now on."""
    _served[group_name] = served


def workspace_for(
    group: dist.ProcessGroup, slot_bytes: int = SLOT_BYTES, machine: Machine | None = None
) -> Workspace | str:
    """The workspace of a group, made at the first call, which all its ranks make together.

    A later call for more bytes makes a larger one. The former stays: graphs may have been captured
    with its addresses.

    Args:
        group: its ranks.
        slot_bytes: the largest payload to serve.
        machine: what the group runs on from now on; None: the one of earlier calls, or else one
            that comes with the package.

    Returns:
        The workspace, smaller than asked for if there was one and a larger could not be made; or
        why this group has none. All ranks get the same.
    """
    name = str(group.group_name)
    former = _served.get(name)
    workspace = former.workspace if former else None
    if workspace is None or workspace.slot_bytes < slot_bytes:
        try:
            workspace = Workspace.rendezvous(group, slot_bytes=slot_bytes, former=workspace)
        except KernelError as error:
            if workspace is None:
                return f"{error.what}: {error.found}"
    machine = machine or (former.machine if former else machine_with(workspace.device_name))
    serve(name, Served(workspace, machine, "nccl" in dist.get_backend(group)))
    return workspace


def serving(group_name: str, x: torch.Tensor) -> Served | None:
    """The group's workspace if it serves the payload ``x``, or None."""
    served = _served.get(group_name)
    if served is None or not x.is_cuda:
        return None
    hidden = x.shape[-1]
    rows = x.numel() // max(hidden, 1)
    return served if rows and served.workspace.refusal(rows, hidden, x.dtype) is None else None


def all_reduce_add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    offset: float,
    group_name: str,
) -> Pair:
    """Runs the op: one kernel, or an all_reduce and a norm."""
    served = serving(group_name, x)
    kernel = served.kernel(Fused.ALL_REDUCE_ADD_NORM, x) if served else FusedKernel.COMPOSED
    if served is None or kernel is FusedKernel.COMPOSED:
        total = c10d.wait_tensor(c10d.all_reduce(x, "sum", group_name))
        return add_norm(total, residual, weight, eps, offset)
    # Two shots exchange sums with the residual in the place of x.
    two_shot = kernel is FusedKernel.TWO_SHOT and residual.dtype == x.dtype
    run = (
        ops.two_shot_all_reduce_add_rms_norm_whole
        if two_shot
        else (ops.one_shot_all_reduce_add_rms_norm)
    )
    return run(x, residual, weight, eps, offset, *served.workspace.on_current_stream())


def reduce_scatter_add_rms_norm_all_gather(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    offset: float,
    group_size: int,
    group_name: str,
) -> Pair:
    """Runs the op: one kernel, or two collectives and a norm."""
    served = serving(group_name, x)
    kind = Fused.REDUCE_SCATTER_ADD_NORM_ALL_GATHER
    if served is None or served.kernel(kind, x) is FusedKernel.COMPOSED:
        whole = padded_rows(x, 0, group_size)
        share = c10d.wait_tensor(c10d.reduce_scatter_tensor(whole, "sum", group_size, group_name))
        y, h = add_norm(share, residual, weight, eps, offset)
        return gathered(y, group_size, group_name)[: x.shape[0]], h
    workspace = served.workspace.on_current_stream()
    return ops.two_shot_all_reduce_add_rms_norm(x, residual, weight, eps, offset, *workspace)


def add_norm(
    total: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, offset: float
) -> Pair:
    """Y and h of one rank, each rounded once from float32; on CUDA in one kernel."""
    width, dtypes = total.shape[-1], (total.dtype, residual.dtype)
    taken = all(why_unsupported(width, dtype) is None for dtype in dtypes)
    if total.is_cuda and taken and _has_triton():
        total, residual = total.contiguous(), residual.contiguous()
        y, h = torch.empty_like(total), torch.empty_like(residual)
        launch.add_norm(total, y, Norm(residual, h, weight.contiguous(), eps, offset))
        return y, h
    h = total + residual
    wide = torch.promote_types(h.dtype, torch.float32)
    scale = weight.to(wide) + offset
    return rms_norm(h.to(wide), scale.shape, scale, eps).to(total.dtype), h.to(residual.dtype)


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


for _op, _run in (
    ("all_reduce_add_rms_norm", all_reduce_add_rms_norm),
    ("reduce_scatter_add_rms_norm_all_gather", reduce_scatter_add_rms_norm_all_gather),
):
    torch.library.impl(f"commplan::{_op}", ("cpu", "cuda"), _run)
