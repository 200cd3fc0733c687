"""The ranks of a process group, asked for small objects at compile time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from compiler.capture.digest import digests
from compiler.capture.ranks import ranks_text
from compiler.errors import MeshError, PlacementError, PlanError
from compiler.ir.exchange import Exchange
from compiler.ir.mesh import Mesh

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


def compare_inputs(
    exchange: Exchange,
    tensors: Mapping[str, torch.Tensor],
    mesh: Mesh | None = None,
    along: Mapping[str, Iterable[str]] | None = None,
) -> None:
    """Raise unless ranks hold the same ``tensors``; all ranks must call it.

    Args:
        exchange: the ranks.
        tensors: what this rank holds.
        mesh: of the ranks.
        along: tensor -> axes along which it is compared; without it all ranks are alike.

    Raises:
        PlacementError: names the first tensor that differs, and the ranks.
    """
    everyone = exchange.gather(digests(tensors))
    for name in tensors:
        held = [listed.get(name) for listed in everyone]
        for where, group in _groups(exchange, name, mesh, along):
            digest_of = {rank: held[rank] for rank in group}
            found = list(digest_of.values())
            common = max(found, key=found.count)  # of several, the first: all ranks say the same
            others = [rank for rank, digest in digest_of.items() if digest != common]
            if others:
                differ = f"differ{'s' if len(others) == 1 else ''} from the others"
                raise PlacementError(
                    f"input {name!r} must be the same on all ranks{where}, and is not",
                    found=f"{ranks_text(others)} {differ}",
                    remedy="give every rank the same input, or declare its placement with inputs=",
                )


def _groups(
    exchange: Exchange, name: str, mesh: Mesh | None, along: Mapping[str, Iterable[str]] | None
) -> Iterator[tuple[str, Sequence[int]]]:
    """The ranks that are to hold the same, and what to call them."""
    if mesh is None or along is None or set(along[name]) == set(mesh.axes):
        yield "", range(exchange.size)
        return
    for axis in along[name]:
        for group in mesh.groups[axis].ranks:
            yield f" of axis {axis!r}", group


def compare_plans(
    exchange: Exchange,
    digest: str,
    machine: str | None,
    options: Mapping[str, object] | None = None,
    sizes: Mapping[str, tuple[int, ...]] | None = None,
) -> None:
    """Raise unless all ranks hold the same plans; all ranks must call it.

    Args:
        exchange: the ranks.
        digest: of this rank's plans.
        machine: name of the machine that they are made for; None: they compare by bytes.
        options: of this rank, which must agree whatever the plans are.
        sizes: of the arguments of the call that the plans were first made for.

    Raises:
        PlanError: names the ranks that differ, and their options, machines or sizes if those do.
    """
    everyone = exchange.gather((digest, machine, options or {}, sizes or {}))
    first, planned_for, *_ = everyone[0]
    others = {rank: named for rank, (held, named, *_) in enumerate(everyone) if held != first}
    if found := _first_difference([held for _, _, held, _ in everyone]):
        raise PlanError(
            "ranks optimize with different options",
            found=found,
            remedy="call optimize_allreduce with the same options on every rank",
        )
    for rank, named in others.items():
        if named != planned_for:
            raise PlanError(
                "ranks plan for different machines",
                found=f"rank 0 plans for {planned_for or 'no machine'}, "
                f"rank {rank} for {named or 'no machine'}",
                remedy="pass machine= by name, the same on every rank: by default each rank takes "
                "the machine that has its own GPU",
            )
    if others and (found := _first_difference([held for *_, held in everyone])):
        raise PlanError(
            "ranks hold different plans: the sizes they were first called with differ",
            found=found,
            remedy="make the first call, or example_inputs=, with the same sizes on every rank",
        )
    if others:
        raise PlanError(
            "ranks hold different plans",
            found=f"{ranks_text(list(others))} differ{'s' if len(others) == 1 else ''} from rank 0",
            remedy="run the same version of commplan and torch, with the same options, on every "
            "rank",
        )


def _first_difference(everyone: Sequence[Mapping[str, object]]) -> str:
    """What differs between the first rank and another, empty if nothing does."""
    first = everyone[0]
    for rank, held in enumerate(everyone):
        for name in dict.fromkeys((*first, *held)):
            if first.get(name) != held.get(name):
                return f"{name} is {first.get(name)!r} on rank 0, {held.get(name)!r} on rank {rank}"
    return ""
