"""The ranks of a process group, asked for small objects at compile time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from compiler.capture.digest import digests
from compiler.capture.ranks import ranks_text
from compiler.errors import MeshError, PlacementError, PlanError
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
    everyone = group or dist.group.WORLD
    assert everyone is not None, "an initialized torch.distributed has a group of all ranks"
    return everyone


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
        common = max(held, key=held.count)  # of several, the first rank's: all ranks say the same
        others = [rank for rank, digest in enumerate(held) if digest != common]
        raise PlacementError(
            f"input {name!r} must be the same on all ranks, and is not",
            found=f"{ranks_text(others)} differ{'s' if len(others) == 1 else ''} from the others",
            remedy="give every rank the same input, or declare its placement with inputs=",
        )


def compare_plans(exchange: Exchange, digest: str, machine: str | None) -> None:
    """Raise unless all ranks hold the same plans; all ranks must call it.

    Args:
        exchange: the ranks.
        digest: of this rank's plans.
        machine: name of the machine that they are made for; None: they compare by bytes.

    Raises:
        PlanError: names the ranks that differ, and their machines where those do.
    """
    everyone = exchange.gather((digest, machine))
    first, planned_for = everyone[0]
    others = {rank: named for rank, (held, named) in enumerate(everyone) if held != first}
    for rank, named in others.items():
        if named != planned_for:
            raise PlanError(
                "ranks plan for different machines",
                found=f"rank 0 plans for {planned_for or 'no machine'}, "
                f"rank {rank} for {named or 'no machine'}",
                remedy="pass machine= by name, the same on every rank: by default each rank takes "
                "the machine that has its own GPU",
            )
    if others:
        raise PlanError(
            "ranks hold different plans",
            found=f"{ranks_text(list(others))} differ{'s' if len(others) == 1 else ''} from rank 0",
            remedy="run the same version of commplan and torch, with the same options, on every "
            "rank",
        )
