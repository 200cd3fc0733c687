"""The ranks of a process group, asked for small objects at compile time.

Ranks meet in the store of their process group, not in a collective: a meeting can neither mix with
the model's collectives, nor wait for a GPU or for a thread that holds Python's lock, nor break the
group when it times out; and who is missing can be read off it.
"""

from __future__ import annotations

import hashlib
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from compiler.capture.digest import digests
from compiler.capture.rank_traces import by_value, ranks_text
from compiler.errors import ExchangeError, MeshError, PlacementError, PlanError
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Varying
from compiler.ir.rank_exchange import Exchange
from compiler.runtime.process_groups import group_named

T = TypeVar("T")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.0005, 0.02
"""Between two looks for ranks that have not arrived."""


@dataclass(frozen=True)
class _Arrival(Generic[T]):
    """What a rank leaves for the others.

    Attributes:
        stage: what the rank is doing.
        item: what it answers.
        failure: why it cannot answer; empty if it can.
        gave_up: it waited for ranks that did not arrive.
    """

    stage: str
    item: T
    failure: str = ""
    gave_up: bool = False


@dataclass(frozen=True)
class GroupExchange:
    """All ranks of a real process group (gloo, NCCL, …).

    Attributes:
        group: the ranks.
        timeout: how long a rank waits for the others; None: half of the group's own timeout.
        stage: what is being done; ranks that meet must be doing the same.
    """

    group: dist.ProcessGroup
    timeout: timedelta | None = None
    stage: str = ""

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.group.size()

    @property
    def rank(self) -> int:
        """This process's rank in the group."""
        return self.group.rank()

    @property
    def patience(self) -> timedelta:
        """How long a rank waits for the others."""
        default: timedelta = self._store.timeout / 2
        return self.timeout or default

    def during(self, stage: str) -> GroupExchange:
        """The same ranks, doing ``stage``."""
        return replace(self, stage=stage)

    def gather(self, item: T) -> list[T]:
        """Every rank's ``item``, by rank.

        Raises:
            ExchangeError: a rank did not arrive in time, is at another stage, or answered ``fail``.
        """
        return [arrival.item for arrival in self._meet(_Arrival(self.stage, item))]

    def fail(self, reason: str) -> None:
        """Answer the others' next ``gather`` with the reason why this rank cannot go on.

        Raises:
            ExchangeError: always, on all ranks; names the ranks that failed, and why.
        """
        self._meet(_Arrival(self.stage, None, reason))

    @cached_property
    def _store(self) -> Any:
        """Where the group's ranks met when it was made; its stubs lack ``timeout`` and bytes."""
        find: Callable[[dist.ProcessGroup], c10d.Store] = vars(c10d)["_get_process_group_store"]
        return c10d.PrefixStore("commplan", find(self.group))

    def _meet(self, mine: _Arrival[Any]) -> list[_Arrival[Any]]:
        """What every rank left at this meeting, which all have reached."""
        number = self._store.add(f"meetings of {self.rank}", 1)
        self._leave(number, mine)
        if missing := self._missing(number):
            error = self._absence(number, missing)
            self._leave(number, replace(mine, failure=error.what, gave_up=True))
            raise error
        keys = [self._store.get(f"{number} {rank}") for rank in range(self.size)]
        content = {key: pickle.loads(self._store.get(key.decode())) for key in dict.fromkeys(keys)}
        everyone = [content[key] for key in keys]
        self._forget(number - 1)
        stages = {rank: arrival.stage for rank, arrival in enumerate(everyone)}
        if len(set(stages.values())) > 1:
            raise ExchangeError(
                "the ranks compile different graphs",
                found=by_value(stages),
                remedy="every rank must compile the same graphs in the same order: call the model "
                "with arguments of the same kinds and sizes on every rank",
                alone=True,
            )
        if failures := {rank: a.failure for rank, a in enumerate(everyone) if a.failure}:
            raise ExchangeError(
                f"{ranks_text(failures)} failed",
                where=self.stage,
                found=by_value(failures),
                remedy="see what these ranks report",
                reasons=failures,
                alone=any(arrival.gave_up for arrival in everyone),
            )
        return everyone

    def _leave(self, number: int, mine: _Arrival[Any]) -> None:
        """Put down an arrival; ranks that leave the same share one copy."""
        written = pickle.dumps(mine)
        key = f"{number} {hashlib.blake2b(written, digest_size=16).hexdigest()}"
        self._store.set(key, written)
        self._store.set(f"{number} {self.rank}", key)

    def _forget(self, number: int) -> None:
        """Clear this rank's part of a meeting that all ranks have left."""
        if self._store.check([f"{number} {self.rank}"]):
            self._store.delete_key(self._store.get(f"{number} {self.rank}").decode())
            self._store.delete_key(f"{number} {self.rank}")

    def _missing(self, number: int) -> list[int]:
        """Ranks that have not arrived although this one has waited long enough."""
        missing = [rank for rank in range(self.size) if rank != self.rank]
        last, pause = time.monotonic() + self.patience.total_seconds(), FIRST_PAUSE_S
        while not self._store.check([f"{number} {rank}" for rank in missing]):
            if time.monotonic() > last:
                return [rank for rank in missing if not self._store.check([f"{number} {rank}"])]
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)
        return []

    def _absence(self, number: int, missing: Sequence[int]) -> ExchangeError:
        """What to say of ranks that did not arrive: where they were seen last."""
        seen: dict[int, str] = {}
        for rank in missing:
            at = self._store.add(f"meetings of {rank}", 0)
            there = self._store.check([key := f"{at} {rank}"])
            left = pickle.loads(self._store.get(self._store.get(key).decode())) if there else None
            seen[rank] = f"last seen at meeting {at}{left and f', {left.stage}'}" if at else "never"
        return ExchangeError(
            f"{ranks_text(missing)} did not arrive within {self.patience.total_seconds():g} s",
            where=f"meeting {number}, {self.stage}" if self.stage else f"meeting {number}",
            found=by_value(seen),
            remedy="every rank must compile the same graphs in the same order; if these ranks are "
            "slower than that, give all a longer timeout",
            alone=True,
        )


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
            "group= must be a process group of this rank",
            found=repr(group),
            remedy="pass a torch.distributed.ProcessGroup, or None for all ranks",
        )
    everyone = group or dist.group.WORLD
    assert everyone is not None, "an initialized torch.distributed has a group of all ranks"
    return everyone


def ranks_of_groups(names: Iterable[str]) -> dist.ProcessGroup:
    """The ranks that these groups connect: the group that holds all others, else all ranks.

    Raises:
        MeshError: no process group is initialized, or a name that does not resolve.
    """
    everyone = ranks_of(None)
    groups = list(map(group_named, dict.fromkeys(names)))
    widest = max(groups, key=lambda group: group.size(), default=everyone)
    inside = set(dist.get_process_group_ranks(widest))
    connected = all(set(dist.get_process_group_ranks(group)) <= inside for group in groups)
    return widest if connected else everyone


def exchange_over(
    group: dist.ProcessGroup, timeout: timedelta | None = None
) -> GroupExchange | None:
    """How to ask the other ranks of ``group``; None for one rank, or a fake group of which one is.

    The fake backend runs one rank of many: there is nobody to ask. ``timeout`` is how long a rank
    waits for the others; None: half of the group's own timeout.
    """
    if group.size() == 1 or dist.get_backend(group) == "fake":
        return None
    return GroupExchange(group, timeout)


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
        digest_by_rank = [of_rank.get(name) for of_rank in everyone]
        for where, group in _groups(exchange, name, mesh, along):
            digest_of = {rank: digest_by_rank[rank] for rank in group}
            values = list(digest_of.values())
            common = max(values, key=values.count)  # of several, the first: all ranks say the same
            others = [rank for rank, digest in digest_of.items() if digest != common]
            if others:
                differ = f"differ{'s' if len(others) == 1 else ''} from the others"
                raise PlacementError(
                    f"input {name!r} must be the same on all ranks{where}, and is not",
                    found=f"{ranks_text(others)} {differ}",
                    remedy="give every rank the same input, or declare its placement with inputs="
                    + _varying(name, digest_by_rank, mesh),
                )


def _varying(name: str, digest_of: Sequence[str | None], mesh: Mesh | None) -> str:
    """What says that ranks differ along the axes along which they do; nothing without a mesh."""
    axes = [
        axis for axis, groups in (mesh.groups if mesh else {}).items()
        if any(len({digest_of[rank] for rank in group}) > 1 for group in groups.ranks)
    ]  # fmt: skip
    return str({name: dict.fromkeys(axes, Varying())}) if axes else ""


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
    others = {rank: named for rank, (plan, named, *_) in enumerate(everyone) if plan != first}
    if difference := _first_difference([plan for _, _, plan, _ in everyone]):
        raise PlanError(
            "ranks optimize with different options",
            found=difference,
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
    if others and (difference := _first_difference([plan for *_, plan in everyone])):
        raise PlanError(
            "ranks hold different plans: the sizes they were first called with differ",
            found=difference,
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
    for rank, items in enumerate(everyone):
        for name in dict.fromkeys((*first, *items)):
            if first.get(name) != items.get(name):
                return (
                    f"{name} is {first.get(name)!r} on rank 0, {items.get(name)!r} on rank {rank}"
                )
    return ""
