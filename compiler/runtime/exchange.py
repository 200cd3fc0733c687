"""The ranks of a process group, asked for small objects at compile time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from compiler.capture.digest import digests
from compiler.capture.ranks import ranks_text
from compiler.errors import MeshError, PlacementError
from compiler.ir.exchange import Exchange

T = TypeVar("T")


@dataclass(frozen=True)
class GroupExchange:
    """All ranks of a real process group (gloo, NCCL, …)."""

    group: dist.ProcessGroup

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.group.size()

    @property
    def rank(self) -> int:
        """This process's rank in the group."""
        return self.group.rank()

    def gather(self, item: T) -> list[T]:
        """Every rank's ``item``, by rank."""
        everyone: list[T] = [item] * self.size
        dist.all_gather_object(everyone, item, group=self.group)
        return everyone


def ranks_of(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    """``group``, or all ranks.

    Raises:
        MeshError: no process group is initialized, or ``group`` is none.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise MeshError(
            "no process group is initialized",
            remedy="start the ranks with torchrun and call torch.distributed.init_process_group "
            "first; optimize_graph works on a graph alone",
        )
    if not isinstance(group, dist.ProcessGroup | None):
        raise MeshError(
            "group= is no process group of this rank",
            found=repr(group),
            remedy="pass a torch.distributed.ProcessGroup, or None for all ranks",
        )
    return group or dist.distributed_c10d._get_default_group()


def exchange_over(group: dist.ProcessGroup) -> Exchange | None:
    """How to ask the other ranks of ``group``; None for one rank, or a fake group of which one is.

    The fake backend runs one rank of many: there is nobody to ask.
    """
    if group.size() == 1 or dist.get_backend(group) == "fake":
        return None
    return GroupExchange(group)


def exchange_if_any(group: dist.ProcessGroup | None) -> Exchange | None:
    """As ``exchange_over``, by default over all ranks; None where no group is initialized."""
    is_there = dist.is_available() and dist.is_initialized()
    return exchange_over(ranks_of(group)) if is_there else None


def compare_inputs(exchange: Exchange, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise unless all ranks hold the same ``tensors``; all ranks must call it.

    Raises:
        PlacementError: names the first tensor that differs, and the ranks.
    """
    everyone = exchange.gather(digests(tensors))
    for name in tensors:
        held = [listed.get(name) for listed in everyone]
        if len(set(held)) == 1:
            continue
        common = max(set(held), key=held.count)
        others = [rank for rank, digest in enumerate(held) if digest != common]
        raise PlacementError(
            f"input {name!r} must be the same on all ranks, and is not",
            found=f"{ranks_text(others)} differ{'s' if len(others) == 1 else ''} from the others",
            remedy="give every rank the same input, or declare its placement with inputs=",
        )
