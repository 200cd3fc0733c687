"""Inductor's cache of graphs across processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from compiler.backend.inductor_cache import CacheKey
from tests.compiler.backend import cached


def started(folder: Path, ranks: int, *options: str) -> Any:
    """What the caches did in a new process."""
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(folder)}
    command = [sys.executable, "-m", cached.__name__, str(ranks), *options]
    ran = subprocess.run(command, env=environment, check=True, capture_output=True, timeout=600)
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_a_second_start_takes_the_graph_from_the_cache(tmp_path: Path) -> None:
    made = {"hit": 0, "miss": 1, "outcome": "optimized", "after": 1}
    off, machine = json.dumps({"policy": "off"}), json.dumps({"machine": "h200x8"})
    assert started(tmp_path, 2, "{}", off, machine) == [made, made | {"after": 2}, made]
    assert started(tmp_path, 2, "{}") == [made | {"hit": 1, "miss": 0}]
    assert started(tmp_path, 4, "{}") == [made]


def test_keys_tell_plans_apart_and_keep_passes_of_the_user() -> None:
    ran = []
    plain = CacheKey("a")
    assert plain.uuid() == CacheKey("a").uuid() != CacheKey("b").uuid()
    assert CacheKey("a", [plain]).uuid() not in (None, plain.uuid())
    assert CacheKey("a", ran.append).uuid() is None
    CacheKey("a", [ran.append, CacheKey("b", ran.append)])(pytest)  # type: ignore[arg-type]
    assert ran == [pytest, pytest]
