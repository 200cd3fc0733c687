"""The benchmark of the host time of calls."""

import json
import os
import subprocess
import sys

import pytest
import torch

from scripts.bench_host import remembered


@pytest.mark.campaign
def test_two_layers() -> None:
    command = [sys.executable, "-m", "scripts.bench_host", "--layers", "2", "--rounds", "3"]
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    forms = [row["form"] for row in found["rows"]]
    assert forms == ["as written", "merged by hand", "optimized, merge"]
    times = [row["us"] for row in found["rows"]]
    assert min(times) > 0
    assert [row["more_than_by_hand_us"] for row in found["rows"]] == [t - times[1] for t in times]
    assert "host time of a compiled call, torch" in ran.stderr


def test_graphs_run_once() -> None:
    graph = torch.fx.symbolic_trace(torch.nn.ReLU())
    run = remembered(graph, [])
    assert run([torch.tensor(2.0)]).item() == 2.0
    assert run([torch.tensor(3.0)]).item() == 2.0
