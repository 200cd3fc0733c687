"""Models that transformers shards by ``tp_plan="auto"``, as they are."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers.distributed.tensor_parallel")


@pytest.mark.campaign  # tests.families.test_doors has one such model for every change
def test_sharded_by_transformers(tmp_path: Path) -> None:
    """In processes of their own: transformers shards over all ranks of a job."""
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, "-m", *launch, "-m", "tests.compiler.backend.generated"]
    ran = subprocess.run(
        [*command, str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ran.returncode == 0, ran.stderr
    lines = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    assert lines == [
        {"Llama": [5, 5, "EQUIVALENT", ""]},
        {"Glm4Moe": [6, 5, "EQUIVALENT", ""]},
    ]
