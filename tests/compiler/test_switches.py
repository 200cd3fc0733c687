"""Switches of a process that serves, each from the environment."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from compiler import CommPlanError, optimize_allreduce, switches
from compiler.backend.backend_options import BackendOptions
from compiler.capture.fake_ranks import fake_process_group
from compiler.check import check
from compiler.ir.text import parse_graph
from tests.compiler.optimize.models import HIDDEN, Stack

ROOT = Path(__file__).parents[2]


@pytest.fixture
def group() -> Iterator[dist.ProcessGroup]:
    with fake_process_group(0, 2):
        assert dist.group.WORLD is not None
        yield dist.group.WORLD


def test_nothing_is_switched_on_by_default() -> None:
    assert switches.log_level({}) is None
    assert switches.dump_folder({}) is None
    assert not switches.checks_calls({})


def test_values() -> None:
    assert switches.log_level({"COMMPLAN_LOGS": "Debug"}) == logging.DEBUG
    assert switches.dump_folder({"COMMPLAN_DUMP": "a/b"}) == Path("a/b")
    assert switches.checks_calls({"COMMPLAN_CHECK_CALLS": "1"})
    assert not switches.checks_calls({"COMMPLAN_CHECK_CALLS": "0"})


@pytest.mark.parametrize(
    ("read", "name"),
    [(switches.log_level, "COMMPLAN_LOGS"), (switches.checks_calls, "COMMPLAN_CHECK_CALLS")],
)
def test_other_values_are_refused(read: Any, name: str) -> None:
    with pytest.raises(CommPlanError) as caught:
        read({name: "loud"})
    assert str(caught.value).startswith(
        f"an environment variable does not take this\n  where: {name}\n  found: 'loud'\n  remedy: "
    )


def test_graphs_are_dumped(
    group: dist.ProcessGroup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMMPLAN_DUMP", str(tmp_path))
    optimized = optimize_allreduce(Stack(group).eval(), machine=None)
    for tokens in (6, 1):
        optimized(torch.ones(tokens, HIDDEN))
    folder = tmp_path / f"rank0-{os.getpid()}"
    names = ("captured.spmd", "planned-1.spmd", "report.txt")
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"{number}-{name}" for number in ("01", "02") for name in names
    )
    source, target = (parse_graph((folder / f"01-{name}").read_text()) for name in names[:2])
    assert check(source, target).verdict.runs
    assert "3 all_reduces before, 2 after" in (folder / "01-report.txt").read_text()


def test_a_folder_that_cannot_be_written_to_is_named(
    group: dist.ProcessGroup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COMMPLAN_DUMP", str(tmp_path / "file"))
    with pytest.raises(CommPlanError, match="COMMPLAN_DUMP cannot be written to"):
        optimize_allreduce(Stack(group).eval(), machine=None)(torch.ones(6, HIDDEN))


def test_calls_are_checked(group: dist.ProcessGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_on() -> tuple[bool, bool]:
        optimized: Any = optimize_allreduce(Stack(group).eval(), machine=None)
        return optimized.optimized.debug, BackendOptions.of({}).debug

    assert is_on() == (False, False)
    monkeypatch.setenv("COMMPLAN_CHECK_CALLS", "1")
    assert is_on() == (True, True)


LOGGED = """
import torch, torch.distributed as dist
from compiler import optimize_allreduce
from compiler.capture.fake_ranks import fake_process_group
from tests.compiler.optimize.models import HIDDEN, Stack
with fake_process_group(0, 2):
    run = optimize_allreduce(Stack(dist.group.WORLD).eval(), machine=None)
    run(torch.ones(6, HIDDEN))
"""


def test_reports_are_logged() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COMMPLAN_LOGS": "info"}
    ran = subprocess.run(
        [sys.executable, "-c", LOGGED], env=environment, check=True, capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip
    assert "compiler.optimize: 3 all_reduces before, 2 after" in ran.stderr
