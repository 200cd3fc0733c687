"""The roll call of a process group: every rank tells the others where it is, in the group's store.

A rank only sets attributes here, which costs a call nothing; a thread writes them to the store
within a tick, and only when they have changed. Whoever waits reads what the others wrote: who
cannot come any more (its process has ended, it has failed, it is past that point) is certain within
a few ticks, whatever the timeout of the group. A rank that is stuck in a collective cannot look for
itself: its thread does, and says in the log who is elsewhere.
"""

from __future__ import annotations

import logging
import pickle
import sys
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from datetime import timedelta
from multiprocessing.util import Finalize
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from compiler.capture.rank_traces import by_value
from compiler.errors import CommPlanError, ExchangeError
from compiler.runtime.whereabouts import (
    NO_MODEL,
    Failure,
    Model,
    Phase,
    Process,
    Whereabouts,
)

LOG = logging.getLogger("compiler.runtime")

TICK_S = 0.5
"""A change is in the store so much later, at most."""
BEAT_S = 2.0
"""Between two signs of life, where ranks are on several hosts."""
SILENT_S = 30.0
"""A rank of another host that gave no sign of life for so long is taken to be gone."""
CONNECT = timedelta(seconds=10)
"""How long a rank tries to reach the store."""
SLOW_S = 10.0
"""Whoever waits for so long says so."""


def store_of(group: dist.ProcessGroup) -> Any:
    """Return where the group's ranks met when it was made; its stubs lack much."""
    find: Callable[[dist.ProcessGroup], c10d.Store] = vars(c10d)["_get_process_group_store"]
    return c10d.PrefixStore("commplan", find(group))


def _own_connection(store: Any) -> Any:
    """Return another connection to a store: on that of the group a rank may wait for minutes."""
    timeout = store.timeout
    store.set_timeout(min(timeout, CONNECT))  # if its server has gone, that is certain sooner
    try:
        return store.clone()
    except dist.DistError:
        return store
    finally:
        store.set_timeout(timeout)


class RollCall:
    """This rank's part in the roll call of one group.

    Attributes:
        rank: this rank.
        size: number of ranks.
        stage: what this rank does besides calls; empty for nothing.
        meetings: how many meetings it has come to.
        model: the one that was called last.
        calls: how many calls of that were begun.
        phase: of the last call.
        failure: the last one.
        in_step: ranks that make the same calls of that model.
        keys: what this rank has in the store for meetings that it may forget.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        """Tell the others that this rank is there, and start to listen."""
        self.rank, self.size = group.rank(), group.size()
        self.stage, self.meetings, self.phase = "", 0, Phase.ENDED
        self.model, self.calls, self._newest = NO_MODEL, 0, NO_MODEL
        self.failure, self._farewell, self._beat = Failure(), "", 0
        self.in_step: frozenset[int] = frozenset()
        self.keys: list[str] = []
        self._process = Process.own()
        self._group = weakref.ref(group)
        self._store = _own_connection(store_of(group))
        self._written: Whereabouts | None = None
        self._lock = threading.Lock()
        self._last_beat = 0.0
        self._heard: dict[int, tuple[Whereabouts, float]] = {}
        self._dead: set[int] = set()
        self._stuck = _Stuck()
        self._stopped = threading.Event()
        self.tell()
        name = f"commplan roll call of {group.group_name}"
        self._thread = threading.Thread(target=self._listen, name=name, daemon=True)
        self._thread.start()
        # Before the interpreter stops threads where they are; also in children of multiprocessing.
        Finalize(self, self._leave, exitpriority=100)

    # ---- what this rank says

    @property
    def whereabouts(self) -> Whereabouts:
        """Where this rank is now."""
        return Whereabouts(
            self._process, self.stage, self.meetings, self.model, self.calls, self.phase,
            self.failure, self._farewell, self._beat,
        )  # fmt: skip

    def add(self, name: str) -> Model:
        """Return what all ranks call a model that they optimize now, also if one failed before."""
        _, meetings, count = self._newest
        self._newest = name, self.meetings, count + 1 if meetings == self.meetings else 0
        return self._newest

    def do(self, stage: str) -> None:
        """Tell the others at once what this rank does besides calls; empty for nothing."""
        self.stage = stage
        self.tell()

    def fail(self, error: BaseException, *, call_ran: bool = True) -> None:
        """Tell the others at once that this rank failed; a call that did not run does not count."""
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        if isinstance(error, CommPlanError) and error.found:
            text += f": {error.found}"
        about_others = isinstance(error, ExchangeError)
        call = self.model, self.calls
        self.failure = Failure("" if about_others else text, call, self.meetings)
        self.stage, self.phase, self.calls = "", Phase.ENDED, self.calls - (not call_ran)
        self.tell()

    def tell(self) -> None:
        """Write where this rank is, if that has changed; a meeting says if there is no store."""
        with self._lock, suppress(dist.DistError):
            if self._written != (now := self.whereabouts):
                self._written = now
                self._store.set(f"at {self.rank}", pickle.dumps(now))

    # ---- what it reads of others

    def of(self, rank: int) -> Whereabouts | None:
        """Return where a rank was last known to be; None if it never took part."""
        with suppress(dist.DistError):
            if self._store.check([key := f"at {rank}"]):
                now: Whereabouts = pickle.loads(self._store.get(key))
                if rank not in self._heard or self._heard[rank][0] != now:
                    self._heard[rank] = now, time.monotonic()
        return self._heard[rank][0] if rank in self._heard else None

    def text_of(self, rank: int) -> str:
        """Return where a rank was last known to be, in words."""
        return str(self.of(rank) or "it has not called optimize_allreduce or the backend yet")

    def absences(self, missing: Iterable[int]) -> dict[int, str]:
        """Return rank -> why it will not come to this rank's last meeting, where certain."""
        mine, first, others = self.whereabouts, dict[int, str](), dict[int, str]()
        for rank in missing:
            if (other := self.of(rank)) is None:
                continue
            why = other.absence_from(mine, in_step=rank in self.in_step)
            if why := why or self._silence(rank):
                (others if other.failure.is_of_others else first)[rank] = why
        return first or others

    def failures(self, patience_s: float) -> dict[int, str]:
        """Return rank -> why it cannot finish the call that this rank is in; waits for a reason."""
        last = time.monotonic() + patience_s
        while True:
            others = {r: at for r in self._others() if (at := self.of(r)) is not None}
            reasons = {r: other.hindrance(self.whereabouts) for r, other in others.items()}
            if any(reasons.values()):
                return {rank: why for rank, why in reasons.items() if why}
            if time.monotonic() > last:
                return self._elsewhere()
            time.sleep(TICK_S / 5)

    def _elsewhere(self) -> dict[int, str]:
        """Return rank -> where it is, of those that do not run the call that this one runs."""
        mine, places = (self.model, self.calls, self.phase), dict[int, str]()
        for rank in self.in_step - {self.rank} or self._others():
            other = self.of(rank)
            if other is not None and other.failure.is_of_others and other.failure.call == mine[:2]:
                continue  # it waited, as this rank does
            its = other and (other.model, other.calls, other.phase)
            if other is None or other.process.fate or its != mine:
                places[rank] = self.text_of(rank)
        return places

    def _others(self) -> Collection[int]:
        return [rank for rank in range(self.size) if rank != self.rank]

    def _silence(self, rank: int) -> str:
        """Return that nothing was heard from a rank of another host, empty if something was."""
        now, since = self._heard[rank]
        silent_s = time.monotonic() - since
        if now.process.host == self._process.host or silent_s < SILENT_S:
            return ""
        return f"it has given no sign of life for {silent_s:.0f} s, {now.doing} before"

    # ---- the thread

    def _listen(self) -> None:
        while not self._stopped.wait(TICK_S) and self._group_is_there():
            if self._is_spread() and time.monotonic() - self._last_beat > BEAT_S:
                self._beat, self._last_beat = self._beat + 1, time.monotonic()
            self.tell()
            self._report_dead()
            self._report_stuck()

    def _group_is_there(self) -> bool:
        group = self._group()
        return group is not None and group in vars(c10d)["_world"].pg_map

    def _is_spread(self) -> bool:
        """Whether a rank is on another host than this one."""
        return any(at.process.host != self._process.host for at, _ in self._heard.values())

    def _report_dead(self) -> None:
        """Say, once of each, whose process has ended without a word."""
        for rank in self._others():
            if rank not in self._heard:
                self.of(rank)
            elif rank not in self._dead and self._heard[rank][0].end:
                self._dead.add(rank)
                other = self.of(rank)
                if other is not None and not other.farewell:
                    LOG.warning("rank %d: %s (this is rank %d)", rank, other, self.rank)

    def _report_stuck(self) -> None:
        """Say, once of each call, who is elsewhere while it does not end."""
        mine = self.whereabouts
        if self._stuck.is_news(mine, time.monotonic()) and (elsewhere := self._elsewhere()):
            LOG.warning(
                "rank %d has been %s for %.0f s; %s", self.rank, mine.doing, SLOW_S,
                by_value(elsewhere),
            )  # fmt: skip

    def _leave(self) -> None:
        """Say that this process exits, and stop the thread."""
        self._stopped.set()
        error = getattr(sys, "last_value", None)
        self._farewell = "exits" if error is None else f"exits with {type(error).__name__}: {error}"
        self.tell()
        self._thread.join(2 * TICK_S)


class _Stuck:
    """Notices, once, that a call does not end."""

    def __init__(self) -> None:
        self._call, self._since, self._reported = -1, 0.0, False

    def is_news(self, mine: Whereabouts, now: float) -> bool:
        """Return whether the call has just become one that runs for too long."""
        if mine.phase is not Phase.RUNNING or mine.calls != self._call:
            self._call = mine.calls if mine.phase is Phase.RUNNING else -1
            self._since, self._reported = now, False
        if self._call < 0 or self._reported or now - self._since < SLOW_S:
            return False
        self._reported = True
        return True


_ROLL_CALLS: weakref.WeakKeyDictionary[dist.ProcessGroup, RollCall] = weakref.WeakKeyDictionary()
"""One for each group of this process."""


def roll_call_of(group: dist.ProcessGroup) -> RollCall:
    """Return the roll call of a group, which begins with the first call."""
    if group not in _ROLL_CALLS:
        _ROLL_CALLS[group] = RollCall(group)
    return _ROLL_CALLS[group]
