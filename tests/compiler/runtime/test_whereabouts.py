"""What is certain of a rank that others wait for."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compiler.runtime.whereabouts import Failure, Phase, Process, Whereabouts

HERE = Process.own()
MODEL, OTHER_MODEL = ("Stack", 0, 0), ("Stack", 0, 1)
WAITING = Whereabouts(HERE, meetings=4, model=MODEL, calls=8, phase=Phase.CHOOSING)
"""A rank that has come to its fourth meeting while it chooses a graph for its eighth call."""
OTHER = Whereabouts(HERE, meetings=3, model=MODEL, calls=8, phase=Phase.CHOOSING)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(command) as process:
        yield process
        process.kill()


def process_of(pid: int) -> Process:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return Process(HERE.host, pid, fields[19])


def wait_for(process: Process, fate: str) -> None:
    last = time.monotonic() + 20
    while process.fate != fate:
        assert time.monotonic() < last, process.fate
        time.sleep(0.01)


def test_fates_of_a_process(sleeper: subprocess.Popen[bytes]) -> None:
    process = process_of(sleeper.pid)
    assert HERE.fate == process.fate == ""
    os.kill(sleeper.pid, signal.SIGSTOP)
    wait_for(process, "is stopped")
    os.kill(sleeper.pid, signal.SIGKILL)
    wait_for(process, "has ended")  # nobody has waited for it yet: it is a zombie
    sleeper.wait()
    assert process.fate == "has ended"


def test_a_later_process_of_the_same_number_is_another() -> None:
    assert replace(HERE, started="1").fate == "has ended"


def test_nothing_is_certain_of_another_host() -> None:
    assert Process("another", 1, "1").fate == ""


ABSENCES = [
    ("on its way", {}, ""),
    ("in a call of another model", {"model": OTHER_MODEL, "calls": 9, "phase": Phase.RUNNING}, ""),
    ("in an earlier call", {"calls": 7, "phase": Phase.RUNNING}, ""),
    ("past the meeting", {"phase": Phase.RUNNING}, "it is running call 8 of Stack already"),
    ("through with the call", {"phase": Phase.ENDED}, "it is after call 8 of Stack already"),
    ("choosing for the next call", {"calls": 9}, ""),
    ("failed on its way", {"failure": Failure("no", (MODEL, 8), 3)}, "it failed before: no"),
    ("failed earlier", {"failure": Failure("no", (MODEL, 7), 2)}, ""),
    ("failed because of others", {"failure": Failure("", (MODEL, 8), 3)}, ""),
    ("exited", {"farewell": "exits"}, "exits; last seen choosing a graph for call 8 of Stack"),
    ("dead", {"process": replace(HERE, started="1")}, "has ended; last seen choosing a graph"),
]


@pytest.mark.parametrize(("changes", "why"), [row[1:] for row in ABSENCES],
                         ids=[row[0] for row in ABSENCES])  # fmt: skip
def test_absences_that_are_certain(changes: dict[str, Any], why: str) -> None:
    reason = replace(OTHER, **changes).absence_from(WAITING, in_step=True)
    assert why in reason
    assert bool(why) == bool(reason)


def test_calls_of_ranks_that_nothing_connects_are_not_compared() -> None:
    ahead = replace(OTHER, phase=Phase.RUNNING)
    assert ahead.absence_from(WAITING, in_step=False) == ""


def test_ranks_that_failed_together_may_meet_again() -> None:
    together = Failure("no plan", (MODEL, 8), 3)
    waiting = replace(WAITING, failure=together)
    assert replace(OTHER, failure=together).absence_from(waiting, in_step=True) == ""


HINDRANCES = [
    (Failure(), {}, ""),
    (Failure("no memory", (MODEL, 8), 3), {}, "it failed: no memory"),
    (Failure("no memory", (MODEL, 7), 3), {}, ""),
    (Failure("no memory", (OTHER_MODEL, 8), 3), {}, ""),
    (Failure("", (MODEL, 8), 3), {"farewell": "exits"}, ""),
]


@pytest.mark.parametrize(("failure", "changes", "why"), HINDRANCES)
def test_what_hinders_a_call(failure: Failure, changes: dict[str, Any], why: str) -> None:
    running = replace(WAITING, phase=Phase.RUNNING)
    assert replace(running, failure=failure, **changes).hindrance(running) == why


@pytest.mark.parametrize(
    ("rank", "text"),
    [
        (Whereabouts(HERE), "before its first call"),
        (Whereabouts(HERE, calls=2), "after call 2"),
        (Whereabouts(HERE, model=MODEL, calls=2), "after call 2 of Stack"),
        (Whereabouts(HERE, calls=2, phase=Phase.RUNNING), "running call 2"),
        (Whereabouts(HERE, stage="planning", calls=2, phase=Phase.CHOOSING), "planning"),
        (
            Whereabouts(HERE, calls=1, failure=Failure("no", (MODEL, 2), 1)),
            "after call 1, after it failed: no",
        ),
    ],
)
def test_words(rank: Whereabouts, text: str) -> None:
    assert str(rank) == text
