"""README.md: its Python blocks run as they stand, each in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)

A_MODEL = """
import torch
import torch.distributed as dist
from torch.distributed import _functional_collectives as funcol
from torch.testing._internal.distributed.fake_pg import FakeStore


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = torch.nn.ModuleList(torch.nn.Linear(8, 8, bias=False) for _ in range(2))

    def forward(self, input_ids, positions):
        x = torch.nn.functional.one_hot(input_ids, 8) * positions[:, None].float()
        return sum(funcol.all_reduce(part(x), "sum", dist.group.WORLD) for part in self.parts)


dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
model, input_ids, positions = Model().eval(), torch.arange(6), torch.arange(6)
"""
"""What the first block takes for granted."""


@pytest.mark.parametrize(
    ("block", "before", "printed"),
    [(0, A_MODEL, "2 all_reduces before, 1 after"), (1, "", "2 1\n")],
    ids=["model", "graph"],
)
def test_python_blocks_run(tmp_path, block, before, printed):
    path = tmp_path / "block.py"
    path.write_text(before + BLOCKS[block])
    found = subprocess.run(
        [sys.executable, path],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith(printed)


def test_every_block_is_run():
    assert len(BLOCKS) == 2
