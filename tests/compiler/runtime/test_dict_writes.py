"""Every way to write an attribute moves the version of its dictionary; reading does not."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from compiler.runtime import dict_writes


class Thing:
    def __init__(self) -> None:
        self.x, self.y = 1.0, 2


def looked_at() -> tuple[Thing, object]:
    thing = Thing()
    dict_writes.move_attributes(vars(thing))
    dict_writes.watch(vars(thing))
    return thing, dict_writes.version(vars(thing))


@pytest.mark.parametrize(
    "write",
    [
        lambda thing: setattr(thing, "x", 3.0),
        lambda thing: setattr(thing, "new", 3.0),
        lambda thing: delattr(thing, "y"),
        lambda thing: object.__setattr__(thing, "x", 3.0),
        lambda thing: vars(thing).update(x=3.0),
        lambda thing: vars(thing).pop("x"),
        lambda thing: vars(thing).clear(),
    ],
)
def test_writes_are_noticed(write: Callable[[Thing], Any]) -> None:
    thing, before = looked_at()
    write(thing)
    assert dict_writes.version(vars(thing)) != before


def test_reads_are_not_writes() -> None:
    thing, before = looked_at()
    assert (thing.x, vars(thing)["y"], hasattr(thing, "z")) == (1.0, 2, False)
    assert dict_writes.version(vars(thing)) == before
    assert list(vars(thing)) == ["x", "y"]


def test_specialized_code_is_noticed() -> None:
    thing, before = looked_at()

    def write(value: float) -> None:
        thing.x = value

    for value in range(100):  # the interpreter specializes what runs often
        write(value)
        after = dict_writes.version(vars(thing))
        assert after != before
        before = after


def test_a_process_with_watched_dictionaries_ends() -> None:
    code = (
        "import torch\nfrom compiler.runtime import dict_writes\n"
        "model = torch.nn.Linear(2, 2)\ndict_writes.watch(vars(model))\nmodel.x = 1\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
