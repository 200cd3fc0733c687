"""README.md and docs/graphs.md: their Python blocks run as they stand, each in its own process."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = [
    block
    for page in ("README.md", "docs/graphs.md")
    for block in re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S)
]

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
"""What the second block takes for granted."""


A_CHECKPOINT = """
import os
import sys
import tempfile

import torch
import torch.distributed as dist
import transformers

from tests.families.families import FAMILIES

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
dist.init_process_group("gloo")
folder = [tempfile.mkdtemp() if dist.get_rank() == 0 else ""]
dist.broadcast_object_list(folder)
checkpoint = folder[0]
if dist.get_rank() == 0:
    FAMILIES["GLM4-MoE"].save(checkpoint)
dist.barrier()
input_ids = torch.arange(3, 12)[None]
"""

AFTER_GENERATING = """
assert tokens.shape == (1, 9 + 32), tokens.shape
dist.barrier()
dist.destroy_process_group()
"""


def run(command: list[str], tmp_path: Path, code: str) -> str:
    path = tmp_path / "block.py"
    path.write_text(code)
    found = subprocess.run(
        [sys.executable, *command, path],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_the_first_door_serves_a_model_of_transformers(tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    printed = run(torchrun, tmp_path, A_CHECKPOINT + BLOCKS[0] + AFTER_GENERATING)
    assert "verdict EQUIVALENT" in printed
    assert "6 all_reduces before, 5 after" in printed


@pytest.mark.parametrize(
    ("block", "before", "printed"),
    [
        (1, A_MODEL, "2 all_reduces before, 1 after"),
        (2, "", "2 1\n"),
        (3, "", "EQUIVALENT\nNOT_EQUIVALENT\n"),
    ],
    ids=["backend", "graph", "single device"],
)
def test_python_blocks_run(tmp_path, block, before, printed):
    assert printed in run([], tmp_path, before + BLOCKS[block])


def test_every_block_is_run():
    assert len(BLOCKS) == 4


def test_links_lead_to_files():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert link.startswith("https:") or (page.parent / link).exists(), f"{page}: {link}"
