"""The kernels as torch ops of the namespace ``commplan``, with fake implementations.

With n ranks, x_r the operand of rank r, fp32(·) exact and every operation on it in fp32:

    sum          = (((fp32(x_0) + fp32(x_1)) + …) + fp32(x_{n-1}))       the same bits on all ranks
    h            = sum + fp32(residual)
    residual_out = h, rounded once to the dtype of residual
    y            = h * rsqrt(mean(h * h) + eps) * (fp32(weight) + offset), rounded once to x's

The mean is taken of h itself, not of the rounded residual_out; but
two_shot_all_reduce_add_rms_norm_whole takes y of residual_out, which is what ranks exchange there,
as ATen's add and rms_norm do. Without a norm, y is the sum, rounded once to the dtype of x.

Rows are divided into shards of ceil(rows / n); rank r owns rows r * shard_rows and on. A shard has
that shape on every rank: rows past the end are not read, and written as zeros.

All ops end in the arguments of a ``Workspace`` (``Workspace.arguments``). ``state`` counts calls,
which is why it is declared as changed: no compiler may drop, repeat or reorder them. Ops whose name
ends in an underscore write into given tensors; two_shot_…_ and all_gather_ do so without staging,
so their x or y must come from ``Workspace.empty``, and each y stays valid until the next call
that writes it.

torch.ops.symm_mem has one_shot_all_reduce, two_shot_all_reduce_ and reduce_scatter_out, which would
serve for bf16 and fp32 groups of processes (reduce_scatter_out for 2, 4 or 8 ranks). They round to
bf16 after every addition, refuse fp16, and find their peers by group name, so they cannot run as
several ranks of one process. It has no all_gather without multicast except by copy engine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from compiler.errors import KernelError
from compiler.runtime.kernels import launch
from compiler.runtime.kernels.launch import Norm, Peers

WORKSPACE = (
    "Tensor(z!) state, Tensor buffer_pointers, Tensor signal_pointers, "
    "int rank, int slot_bytes, int multiprocessors, int max_blocks, "
    "int spin_limit"
)
NORM = "Tensor residual, Tensor weight, float eps, float offset"
NORM_IN_PLACE = "Tensor(a!) residual, Tensor weight, Tensor(b!) y, float eps, float offset"

Tensors = torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None


def one_shot_all_reduce(x: torch.Tensor, *workspace: Any) -> torch.Tensor:
    """The sum over ranks, each of which reads all. For small payloads."""
    x, peers = x.contiguous(), Peers(*workspace)
    launch.refuse_unless_served(x, _rows(x), peers, staged=True)
    y = torch.empty_like(x)
    launch.one_shot(x, y, None, peers)
    return y


def one_shot_all_reduce_add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    offset: float,
    *workspace: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Y and residual_out, all [rows, hidden]. For small payloads."""
    residual = residual.contiguous()
    y, residual_out = torch.empty_like(x.contiguous()), torch.empty_like(residual)
    norm = Norm(residual, residual_out, weight, eps, offset)
    _one_shot_norm(x.contiguous(), y, norm, Peers(*workspace))
    return y, residual_out


def one_shot_all_reduce_add_rms_norm_(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    y: torch.Tensor,
    eps: float,
    offset: float,
    *workspace: Any,
) -> None:
    """The same, with residual_out in the place of residual."""
    _one_shot_norm(x, y, Norm(residual, residual, weight, eps, offset), Peers(*workspace))


def two_shot_all_reduce(x: torch.Tensor, *workspace: Any) -> torch.Tensor:
    """The sum over ranks, each of which adds up a part. For large payloads."""
    x, peers = x.contiguous(), Peers(*workspace)
    launch.refuse_unless_served(x, _rows(x), peers, staged=True)
    y = torch.empty_like(x)
    launch.two_shot(x, y, None, peers, staged=True)
    return y


def two_shot_all_reduce_(x: torch.Tensor, y: torch.Tensor, *workspace: Any) -> None:
    """The same between symmetric tensors."""
    peers = Peers(*workspace)
    launch.refuse_unless_served(x, _rows(x), peers, staged=False)
    _require_shape("y", y, x.shape)
    launch.two_shot(x, y, None, peers, staged=False)


def two_shot_all_reduce_add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    offset: float,
    *workspace: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Y [rows, hidden] and residual_out [shard_rows, hidden]: reduce_scatter, norm, all_gather.

    ``residual`` holds the owned rows only. For large payloads.
    """
    x, residual = x.contiguous(), residual.contiguous()
    y, residual_out = torch.empty_like(x), torch.empty_like(residual)
    norm = Norm(residual, residual_out, weight, eps, offset)
    _two_shot_norm(x, y, norm, Peers(*workspace), staged=True)
    return y, residual_out


def two_shot_all_reduce_add_rms_norm_whole(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    offset: float,
    *workspace: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Y and residual_out, all [rows, hidden] of one dtype. For large payloads."""
    x, residual = x.contiguous(), residual.contiguous()
    y, residual_out = torch.empty_like(x), torch.empty_like(residual)
    norm = Norm(residual, residual_out, weight, eps, offset)
    peers = Peers(*workspace)
    _check_whole_norm(x, y, norm, peers)
    if residual.dtype != x.dtype:
        raise KernelError(
            "residual and x are exchanged in one slot, as one dtype",
            found=f"residual {residual.dtype}, x {x.dtype}",
            remedy="take the one-shot kernel",
        )
    launch.two_shot(x, y, norm, peers, staged=True, whole=True)
    return y, residual_out


def two_shot_all_reduce_add_rms_norm_(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    y: torch.Tensor,
    eps: float,
    offset: float,
    *workspace: Any,
) -> None:
    """The same between symmetric x and y, with residual_out in the place of residual."""
    norm = Norm(residual, residual, weight, eps, offset)
    _two_shot_norm(x, y, norm, Peers(*workspace), staged=False)


def reduce_scatter(x: torch.Tensor, *workspace: Any) -> torch.Tensor:
    """The owned rows of the sum over ranks, [shard_rows, hidden]."""
    x, peers = x.contiguous(), Peers(*workspace)
    launch.refuse_unless_served(x, _rows(x), peers, staged=True)
    y = x.new_empty(_shard_shape(x, peers))
    launch.two_shot(x, y, None, peers, staged=True, gather=False)
    return y


def reduce_scatter_add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    offset: float,
    *workspace: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The owned rows of y and of residual_out, both [shard_rows, hidden]."""
    x, residual = x.contiguous(), residual.contiguous()
    y, residual_out = x.new_empty(residual.shape), torch.empty_like(residual)
    norm = Norm(residual, residual_out, weight, eps, offset)
    _two_shot_norm(x, y, norm, Peers(*workspace), staged=True, gather=False)
    return y, residual_out


def all_gather(x: torch.Tensor, rows: int, *workspace: Any) -> torch.Tensor:
    """[rows, hidden] of every rank's owned rows [shard_rows, hidden]."""
    x, peers = x.contiguous(), Peers(*workspace)
    y = x.new_empty(rows, x.shape[-1])
    _require_shape("x", x, _shard_shape(y, peers))
    launch.refuse_unless_served(y, rows, peers, staged=True)
    launch.all_gather(x, y, peers, staged=True)
    return y


def all_gather_(x: torch.Tensor, y: torch.Tensor, *workspace: Any) -> None:
    """The same into symmetric ``y``."""
    peers = Peers(*workspace)
    _require_shape("x", x, _shard_shape(y, peers))
    launch.refuse_unless_served(y, y.shape[0], peers, staged=False)
    launch.all_gather(x, y, peers, staged=False)


def _one_shot_norm(x: torch.Tensor, y: torch.Tensor, norm: Norm, peers: Peers) -> None:
    _check_whole_norm(x, y, norm, peers)
    launch.one_shot(x, y, norm, peers)


def _check_whole_norm(x: torch.Tensor, y: torch.Tensor, norm: Norm, peers: Peers) -> None:
    launch.refuse_unless_served(x, _rows(x), peers, staged=True)
    _require_shape("residual", norm.residual, x.shape)
    _require_shape("weight", norm.weight, x.shape[-1:])
    _require_shape("y", y, x.shape)


def _two_shot_norm(
    x: torch.Tensor, y: torch.Tensor, norm: Norm, peers: Peers, *, staged: bool, gather: bool = True
) -> None:
    launch.refuse_unless_served(x, _rows(x), peers, staged=staged)
    _require_shape("residual", norm.residual, _shard_shape(x, peers))
    _require_shape("weight", norm.weight, x.shape[-1:])
    _require_shape("y", y, x.shape if gather else norm.residual.shape)
    launch.two_shot(x, y, norm, peers, staged=staged, gather=gather)


def _rows(x: torch.Tensor) -> int:
    return x.numel() // x.shape[-1]


def _shard_shape(x: torch.Tensor, peers: Peers) -> tuple[int, int]:
    return -(-x.shape[0] // peers.world_size), x.shape[1]


def _require_shape(name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != tuple(shape) or not tensor.is_contiguous():
        raise KernelError(
            f"{name} does not fit the other operands",
            found=f"{list(tensor.shape)}, strides {list(tensor.stride())}",
            remedy=f"give a contiguous tensor of shape {list(shape)}",
        )


def _fake_like(x: torch.Tensor, *_: Any) -> torch.Tensor:
    return x.new_empty(x.shape)


def _fake_norm(x: torch.Tensor, residual: torch.Tensor, *_: Any) -> Tensors:
    return x.new_empty(x.shape), residual.new_empty(residual.shape)


def _fake_norm_shard(x: torch.Tensor, residual: torch.Tensor, *_: Any) -> Tensors:
    return x.new_empty(residual.shape), residual.new_empty(residual.shape)


def _fake_shard(x: torch.Tensor, *workspace: Any) -> torch.Tensor:
    return x.new_empty(_shard_shape(x, Peers(*workspace)))


def _fake_all_gather(x: torch.Tensor, rows: int, *_: Any) -> torch.Tensor:
    return x.new_empty(rows, x.shape[-1])


def _fake_nothing(*_: Any) -> None:
    return None


OPS: dict[str, tuple[Callable[..., Tensors], Callable[..., Tensors]]] = {
    f"one_shot_all_reduce(Tensor x, {WORKSPACE}) -> Tensor": (one_shot_all_reduce, _fake_like),
    f"one_shot_all_reduce_add_rms_norm(Tensor x, {NORM}, {WORKSPACE}) -> (Tensor, Tensor)": (
        one_shot_all_reduce_add_rms_norm,
        _fake_norm,
    ),
    f"one_shot_all_reduce_add_rms_norm_(Tensor x, {NORM_IN_PLACE}, {WORKSPACE}) -> ()": (
        one_shot_all_reduce_add_rms_norm_,
        _fake_nothing,
    ),
    f"two_shot_all_reduce(Tensor x, {WORKSPACE}) -> Tensor": (two_shot_all_reduce, _fake_like),
    f"two_shot_all_reduce_(Tensor x, Tensor(b!) y, {WORKSPACE}) -> ()": (
        two_shot_all_reduce_,
        _fake_nothing,
    ),
    f"two_shot_all_reduce_add_rms_norm(Tensor x, {NORM}, {WORKSPACE}) -> (Tensor, Tensor)": (
        two_shot_all_reduce_add_rms_norm,
        _fake_norm,
    ),
    f"two_shot_all_reduce_add_rms_norm_whole(Tensor x, {NORM}, {WORKSPACE}) -> (Tensor, Tensor)": (
        two_shot_all_reduce_add_rms_norm_whole,
        _fake_norm,
    ),
    f"two_shot_all_reduce_add_rms_norm_(Tensor x, {NORM_IN_PLACE}, {WORKSPACE}) -> ()": (
        two_shot_all_reduce_add_rms_norm_,
        _fake_nothing,
    ),
    f"reduce_scatter(Tensor x, {WORKSPACE}) -> Tensor": (reduce_scatter, _fake_shard),
    f"reduce_scatter_add_rms_norm(Tensor x, {NORM}, {WORKSPACE}) -> (Tensor, Tensor)": (
        reduce_scatter_add_rms_norm,
        _fake_norm_shard,
    ),
    f"all_gather(Tensor x, SymInt rows, {WORKSPACE}) -> Tensor": (all_gather, _fake_all_gather),
    f"all_gather_(Tensor x, Tensor(b!) y, {WORKSPACE}) -> ()": (all_gather_, _fake_nothing),
}
"""Schema -> implementation on CUDA and fake implementation."""

for _schema, (_implementation, _fake) in OPS.items():
    _name, _arguments = f"commplan::{_schema}".split("(", 1)
    torch.library.define(_name, f"({_arguments}")
    torch.library.impl(_name, "CUDA", _implementation)
    torch.library.register_fake(_name, _fake)
