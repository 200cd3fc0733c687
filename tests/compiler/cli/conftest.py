"""Graph files, factories and a runner for tests of the command line."""

import sys
import textwrap
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest

from compiler.cli.entry import ExitCode
from compiler.cli.entry import run as run_command
from tests.support.machines import written

TWO_SUMS = """
mesh <tp = 4>
sym s0 in [2, 4096]
func @main(%0 "x": f32[s0, 8] {tp: V}, %1 "y": f32[s0, 8] {tp: V}) {
  %2: f32[s0, 8] = comm.all_reduce(%0) {axis = tp, op = sum}
  %3: f32[s0, 8] = comm.all_reduce(%1) {axis = tp, op = sum}
  %4: f32[s0, 8] = aten.add.Tensor(%2, %3)
  return (%4,)
}
"""

FACTORIES = """
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import nn


class Block(nn.Module):
    def __init__(self, sums):
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(sums))

    def forward(self, x):
        group = dist.group.WORLD
        return x + sum(funcol.all_reduce(part(x), "sum", group) for part in self.parts)


class Layers(nn.Module):
    def __init__(self, sums):
        super().__init__()
        self.layers = nn.ModuleList(Block(sums) for _ in range(2))

    def forward(self, x, *, scale=1.0):
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x * scale


def layers(sums=2):
    return Layers(sums), (torch.ones(6, 8),), {"scale": 2.0}


def one_layer():
    return Layers(1), (torch.ones(6, 8),)


def in_sequence():
    blocks = (Block(2) for _ in range(3))
    return nn.Sequential(nn.Linear(8, 8), *blocks, nn.Tanh()), (torch.ones(6, 8),)


def raises():
    raise ValueError("no such checkpoint")


def exits():
    raise SystemExit(7)


def destroys():
    torch.distributed.destroy_process_group()
    return Layers(dist.get_world_size()), (torch.ones(6, 8),)


def wrong_shape():
    return Layers(1), (torch.ones(6, 9),)


def no_tuple():
    return Layers(1)


def data_dependent():
    class Model(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    return Model(), (torch.ones(2, 2),)


NOT_CALLABLE = 3
"""


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def run():
    def invoke(*arguments: object) -> Outcome:
        out, err = StringIO(), StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                code = run_command([str(a) for a in arguments])
            except SystemExit as exit:
                code = exit.code
        assert code != ExitCode.INTERNAL_ERROR, err.getvalue()
        return Outcome(code, out.getvalue(), err.getvalue())

    return invoke


@pytest.fixture
def two_sums(tmp_path: Path) -> Path:
    """A graph file whose two all_reduces can be one."""
    path = tmp_path / "two_sums.spmd"
    path.write_text(TWO_SUMS)
    return path


@pytest.fixture
def rounded(tmp_path: Path) -> Path:
    """A machine file of round numbers, for groups of four ranks."""
    return written(tmp_path, 4, memory=10)


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module of factories, found in the working directory only."""
    (tmp_path / "cli_factories.py").write_text(textwrap.dedent(FACTORIES))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "cli_factories", raising=False)
    return "cli_factories"
