"""The ranks of a process group, asked for small objects at compile time.

Ranks meet in the store of their process group, not in a collective: a meeting can neither mix with
the model's collectives, nor wait for a GPU or for a thread that holds Python's lock, nor break the
group when it times out; and who is missing can be read off it.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from typing import Any, Generic, TypeVar

import torch.distributed as dist

from compiler.capture.rank_traces import by_value, ranks_text
from compiler.errors import CommPlanError, ExchangeError, MeshError
from compiler.ir.rank_exchange import Exchange
from compiler.runtime.process_groups import group_named
from compiler.runtime.roll_call import LOG, SLOW_S, TICK_S, RollCall, roll_call_of, store_of

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
    def roll_call(self) -> RollCall:
        """Where the ranks say what they do."""
        return roll_call_of(self.group)

    @property
    def patience(self) -> timedelta:
        """How long a rank waits for others that may come yet."""
        default: timedelta = self._store.timeout / 2
        return self.timeout or default

    def during(self, stage: str) -> GroupExchange:
        """The same ranks, doing ``stage``."""
        return replace(self, stage=stage)

    def gather(self, item: T) -> list[T]:
        """Every rank's ``item``, by rank.

        Raises:
            ExchangeError: a rank did not arrive in time or cannot any more, is at another stage, or
                answered ``fail``.
        """
        return [arrival.item for arrival in self._meet(_Arrival(self.stage, item))]

    def fail(self, reason: str) -> None:
        """Answer the others' next ``gather`` with the reason why this rank cannot go on.

        Raises:
            ExchangeError: always, on all ranks; names the ranks that failed, and why.
        """
        self._meet(_Arrival(self.stage, None, reason))

    @contextmanager
    def together(self, stage: str) -> Iterator[GroupExchange]:
        """Within it all ranks do ``stage``; where one fails, all fail.

        Raises:
            ExchangeError: a rank failed, and another did not.
        """
        exchange = self.during(stage)
        self.roll_call.do(stage)
        try:
            yield exchange
            exchange.gather(None)
        except ExchangeError:
            raise
        except Exception as error:
            if not isinstance(error.__cause__, ExchangeError):  # else the others are not there
                exchange.share_failure(error)
            raise
        finally:
            self.roll_call.do("")

    def say(self, what: str) -> None:
        """Say what this rank does until the next meeting."""
        self.roll_call.do(f"{what}, {self.stage}")

    def share_failure(self, error: Exception) -> None:
        """Let the other ranks fail too; where all failed, each knows its own reason.

        Raises:
            ExchangeError: others failed for other reasons, or are not there.
        """
        what = error.what if isinstance(error, CommPlanError) else str(error)
        reason = what if isinstance(error, CommPlanError) else f"{type(error).__name__}: {what}"
        try:
            self.fail(reason)
        except ExchangeError as failure:
            differ = len(set(failure.reasons.values())) > 1
            if failure.alone or (differ and len(failure.reasons) < self.size):
                raise failure from error

    @cached_property
    def _store(self) -> Any:
        """Where the group's ranks met when it was made."""
        return store_of(self.group)

    def _meet(self, mine: _Arrival[Any]) -> list[_Arrival[Any]]:
        """What every rank left at this meeting, which all have reached."""
        try:
            return self._met(mine)
        except dist.DistError as error:
            others = [rank for rank in range(self.size) if rank != self.rank]
            if reasons := self.roll_call.absences(others):
                raise self._absent(self.roll_call.meetings, reasons) from error
            raise ExchangeError(
                "the store in which the ranks meet does not answer",
                where=self.stage,
                found=str(error).splitlines()[0],
                remedy="the process of rank 0, or torchrun, serves it: see whether it has ended",
                alone=True,
            ) from error

    def _met(self, mine: _Arrival[Any]) -> list[_Arrival[Any]]:
        number = self._store.add(f"meetings of {self.rank}", 1)
        self.roll_call.meetings = number
        self._leave(number, mine)
        if error := self._absence(number):
            self._leave(number, replace(mine, failure=error.what, gave_up=True))
            raise error
        keys = [self._store.get(f"{number} {rank}") for rank in range(self.size)]
        content = {key: pickle.loads(self._store.get(key.decode())) for key in dict.fromkeys(keys)}
        everyone = [content[key] for key in keys]
        self._forget(number)
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
        self.roll_call.keys += [key, f"{number} {self.rank}"]

    def _forget(self, number: int) -> None:
        """Clear this rank's part of the meetings before this one: all ranks have left them."""
        current = f"{number} "
        for key in (keys := self.roll_call.keys):
            if not key.startswith(current):
                self._store.delete_key(key)
        keys[:] = [key for key in keys if key.startswith(current)]

    def _absence(self, number: int) -> ExchangeError | None:
        """What to say of ranks that cannot arrive, or did not although this one has waited."""
        missing = [rank for rank in range(self.size) if rank != self.rank]
        start, pause, asked, report_s = time.monotonic(), FIRST_PAUSE_S, 0.0, SLOW_S
        while not self._store.check([f"{number} {rank}" for rank in missing]):
            waited = time.monotonic() - start
            missing = [rank for rank in missing if not self._store.check([f"{number} {rank}"])]
            if waited > self.patience.total_seconds():
                return self._late(number, missing)
            if waited - asked > TICK_S:
                asked = waited
                self.roll_call.tell()
                if reasons := self.roll_call.absences(missing):
                    return self._absent(number, reasons)
            if waited > report_s:
                report_s *= 2
                LOG.warning(
                    "rank %d has waited %.0f s at %s for %s", self.rank, waited,
                    self._where(number), by_value(self._places(missing)),
                )  # fmt: skip
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)
        return None

    def _where(self, number: int) -> str:
        return f"meeting {number}, {self.stage}" if self.stage else f"meeting {number}"

    def _absent(self, number: int, reasons: Mapping[int, str]) -> ExchangeError:
        return ExchangeError(
            f"{ranks_text(reasons)} will not arrive",
            where=self._where(number),
            found=by_value(reasons),
            remedy="see what these ranks report; every rank must make the same calls, of a model "
            "that was changed alike, in the same order",
            alone=True,
        )

    def _late(self, number: int, missing: Sequence[int]) -> ExchangeError:
        return ExchangeError(
            f"{ranks_text(missing)} did not arrive within {self.patience.total_seconds():g} s",
            where=self._where(number),
            found=by_value(self._places(missing)),
            remedy="every rank must compile the same graphs in the same order; if these ranks are "
            "slower than that, give all a longer timeout",
            alone=True,
        )

    def _places(self, missing: Iterable[int]) -> dict[int, str]:
        """Where ranks were seen last."""
        places: dict[int, str] = {}
        for rank in missing:
            at = self._store.add(f"meetings of {rank}", 0)
            there = self._store.check([key := f"{at} {rank}"])
            left = pickle.loads(self._store.get(self._store.get(key).decode())) if there else None
            seen = f"; last seen at meeting {at}{left and f', {left.stage}'}" if at else ""
            places[rank] = self.roll_call.text_of(rank) + seen
        return places


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
    exchange = GroupExchange(group, timeout)
    exchange.roll_call.tell()
    return exchange


def process_name() -> str:
    """Return this process among those that run the program, such as ``rank0-4711``."""
    is_there = dist.is_available() and dist.is_initialized()
    return f"rank{dist.get_rank() if is_there else 0}-{os.getpid()}"


def exchange_if_any(group: dist.ProcessGroup | None) -> Exchange | None:
    """As ``exchange_over``, by default over all ranks; None where no group is initialized."""
    is_there = dist.is_available() and dist.is_initialized()
    return exchange_over(ranks_of(group)) if is_there else None
