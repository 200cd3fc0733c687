"""``commplan verify``."""

import json

import pytest

SINGLE = """
mesh <tp = 1>
func @main(%0 "x": f32[4, 8], %1 "up": f32[16, 8], %2 "down": f32[8, 16]) {
  %3: f32[4, 16] = aten.linear(%0, %1)
  %4: f32[4, 16] = aten.silu(%3)
  %5: f32[4, 8] = aten.linear(%4, %2)
  return (%5,)
}
"""
PARALLEL = """
mesh <tp = 4>
func @main(%0 "x": f32[4, 8], %1 "up": f32[4, 8] {tp: V}, %2 "down": f32[8, 4] {tp: V}) {
  %3: f32[4, 4] = aten.linear(%0, %1)
  %4: f32[4, 4] = aten.silu(%3)
  %5: f32[4, 8] = aten.linear(%4, %2)
  %6: f32[4, 8] = comm.all_reduce(%5) {axis = tp, op = sum}
  return (%6,)
}
"""

FACTORY = """
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol


class MLP(torch.nn.Module):
    def __init__(self, bias):
        super().__init__()
        ranks = dist.get_world_size()
        self.up = torch.nn.Linear(8, 32 // ranks, bias=False)
        self.down = torch.nn.Linear(32 // ranks, 8, bias=bias)

    def forward(self, x):
        return funcol.all_reduce(self.down(self.up(x).relu()), "sum", dist.group.WORLD)


def build(bias=False):
    return MLP(bias), (torch.ones(4, 8),)
"""


@pytest.fixture
def graphs(tmp_path):
    """Writes both graphs, a text of the parallel one replaced."""

    def write(old="", by=""):
        assert old in PARALLEL
        files = tmp_path / "parallel.spmd", tmp_path / "single.spmd"
        for file, text in zip(files, (PARALLEL.replace(old, by), SINGLE), strict=True):
            file.write_text(text)
        return files

    return write


def test_right(run, graphs):
    found = run("verify", *graphs())
    assert found.code == 0, found.err
    assert found.out.startswith("EQUIVALENT  all 1 outputs are the same function of the inputs on")
    assert "premise: inputs are held as declared or as their shapes say: 1 R, 1 S(0), 1 S(1)" in (
        found.out
    )


def test_wrong(run, graphs):
    found = run("verify", *graphs("(%6,)", "(%5,)"), "--format", "json")
    assert found.code == 1
    report = json.loads(found.out)
    assert report["verdict"] == "NOT_EQUIVALENT"
    assert report["counterexample"]["output"] == 0


def test_inputs_that_do_not_fit(run, graphs):
    found = run("verify", *graphs('"x": f32[4, 8]', '"y": f32[4, 8]'))
    assert found.code == 1
    found = run("verify", *graphs("tp = 4", "tp = 3"))
    assert found.code == 3
    assert "the shapes of 'up' do not fit" in found.err


def test_a_model_against_itself_with_one_rank(run, tmp_path, monkeypatch):
    (tmp_path / "own_mlp.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    found = run("verify", "own_mlp:build", "--tp", "4")
    assert found.code == 0, found.out + found.err
    found = run("verify", "own_mlp:build", "--tp", "4", "--set", "bias=True")
    assert found.code == 1
