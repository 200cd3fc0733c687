"""The benchmark of one rank, on a tiny model on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from compiler.cost import load_machine
from compiler.ir.collectives import Kind
from scripts.bench_rank import predicted


@pytest.mark.campaign
def test_tiny_model(tmp_path: Path) -> None:
    output = tmp_path / "rank.json"
    sizes = [
        "--layers",
        "3",
        "--prefill",
        "32",
        "--decode",
        "4",
        "--context",
        "32",
        "--repeats",
        "1",
    ]
    command = [sys.executable, "-m", "scripts.bench_rank", "--device", "cpu", *sizes]
    ran = subprocess.run(
        [*command, "--output", str(output)], capture_output=True, text=True, env=os.environ
    )
    assert ran.returncode == 0, ran.stderr
    rows = json.loads(output.read_text())["rows"]
    assert [(r["decode"], r["tokens"]) for r in rows] == [(False, 32)] * 4 + [(True, 4)] * 4
    assert [r["collectives"] for r in rows] == [9, 8, 8, 8] * 2
    assert {r["verdict"] for r in rows} == {"", "EQUIVALENT"}
    assert ran.stdout.index("MEASURED") < ran.stdout.index("PREDICTED for h200x8")


def test_prediction_adds_communication_to_compute() -> None:
    traffic = [(Kind.ALL_REDUCE, 1 << 20)] * 3
    measured = {"tokens": 128, "eager_us": 900.0, "busy_us": 500.0, "collectives": traffic}
    found = predicted(measured, "h100x8")
    one_ps = load_machine("h100x8").collective_time_ps(
        Kind.ALL_REDUCE, 1 << 20, [list(range(8))], launch="eager"
    )
    assert found["sent_us"] == 3 * one_ps / 1e6
    assert found["forward_us"] == 500.0 + found["sent_us"]
    assert found["tokens_s"] == 128 / found["forward_us"] * 1e6
