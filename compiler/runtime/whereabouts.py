"""Where a rank is, as the others read it, and whether it can still come to where they wait."""

from __future__ import annotations

import functools
import os
import uuid
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path


class Phase(IntEnum):
    """What is done of a call, in this order. Ranks meet, if at all, while they choose its graph."""

    CHOOSING = 0
    RUNNING = 1
    ENDED = 2


@dataclass(frozen=True)
class Process:
    """A process of some machine.

    Attributes:
        host: tells apart machines, and containers whose processes have numbers of their own.
        pid: its number there.
        started: when it started, in ticks: a later process may get its number.
    """

    host: str
    pid: int
    started: str

    @staticmethod
    def own() -> Process:
        """Return this process."""
        return Process(host(), os.getpid(), _state_and_start(os.getpid())[1])

    @property
    def fate(self) -> str:
        """Whether it "has ended" or "is stopped" for certain; of other hosts nobody can tell."""
        if self.host != host():
            return ""
        state, started = _state_and_start(self.pid)
        if state in ("", "Z", "X") or started != self.started:
            return "has ended"
        return "is stopped" if state in "Tt" else ""


@functools.cache
def host() -> str:
    """Return what processes have in common that see each other; unique where that is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return str(uuid.uuid4())


def _state_and_start(pid: int) -> tuple[str, str]:
    """Return the state of a process, empty without one, and when it started; see proc(5)."""
    try:
        listed = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", ""
    return listed[0], listed[19]


Model = tuple[str, int, int]
"""An optimized model: its name, how many meetings were before it, and how many models since."""
NO_MODEL: Model = ("", 0, 0)


@dataclass(frozen=True)
class Failure:
    """What ended a call or a meeting of one rank.

    Attributes:
        text: the error; empty if it tells of other ranks.
        call: the model and the number of its call.
        meetings: how many meetings the rank had come to.
    """

    text: str = ""
    call: tuple[Model, int] = NO_MODEL, 0
    meetings: int = -1

    @property
    def is_of_others(self) -> bool:
        """Whether the rank failed because others had."""
        return self.meetings >= 0 and not self.text


@dataclass(frozen=True)
class Whereabouts:
    """What a rank was last known to do.

    Attributes:
        process: where it runs.
        stage: what it does besides calls, such as planning.
        meetings: how many meetings of the group it has come to.
        model: the optimized model that it called last.
        calls: how many calls of that it has begun, without those that failed before they ran.
        phase: of the last call.
        failure: its last one.
        farewell: how its process exited; empty while it runs, and where nothing could be said.
        beat: counts on while it runs, where ranks are on several hosts.
    """

    process: Process
    stage: str = ""
    meetings: int = 0
    model: Model = NO_MODEL
    calls: int = 0
    phase: Phase = Phase.ENDED
    failure: Failure = Failure()
    farewell: str = ""
    beat: int = 0

    @property
    def doing(self) -> str:
        """What it does, as words after "is" or "was"."""
        if self.stage:
            return self.stage
        call = f"call {self.calls}" + f" of {self.model[0]}" * bool(self.model[0])
        if self.phase is Phase.CHOOSING:
            return f"choosing a graph for {call}"
        if self.phase is Phase.RUNNING:
            return f"running {call}"
        return f"after {call}" if self.calls else "before its first call"

    @property
    def end(self) -> str:
        """How its process ended, empty while it may run."""
        how = self.farewell or "has ended" * (self.process.fate == "has ended")
        return how and f"its process {self.process.pid} {how}; last seen {self.last}"

    @property
    def last(self) -> str:
        """What it does, and its failure if it has not made a call since."""
        return self.doing + f", after it failed: {self.failure.text}" * bool(self.failure.text)

    def __str__(self) -> str:
        stopped = f", but its process {self.process.pid} is stopped" * bool(self.process.fate)
        return self.end or self.last + stopped

    def hindrance(self, running: Whereabouts) -> str:
        """Return why this rank cannot finish the call that another runs; empty if it may."""
        is_of_call = self.failure.call == (running.model, running.calls)
        if is_of_call and self.failure.is_of_others:
            return ""
        if self.end or self.process.fate:
            return str(self)
        failed = bool(self.failure.text) and is_of_call
        return f"it failed: {self.failure.text}" * failed

    def absence_from(self, waiting: Whereabouts, *, in_step: bool) -> str:
        """Return why this rank will not come to the last meeting of another; empty if it may.

        Args:
            waiting: the other rank, which has come to that meeting.
            in_step: whether collectives of all graphs of the model connect the two, so that both
                make the same calls.
        """
        if self.end:
            return self.end
        before = waiting.meetings - 1
        if self.failure.text and self.failure.meetings == before != waiting.failure.meetings:
            return f"it failed before: {self.failure.text}"
        ahead = (self.calls, self.phase) > (waiting.calls, waiting.phase)
        is_same = in_step and self.model == waiting.model
        if is_same and ahead and self.phase is not Phase.CHOOSING:
            return f"it is {self.doing} already"
        return ""
