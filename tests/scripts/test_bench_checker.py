"""The command: tables or JSON on standard output, findings in a folder, exit code."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest

from scripts import bench_checker
from scripts.mutate import MUTATIONS
from scripts.mutate.campaign import Finding, Tally

SMALL = ("--mutants", "4", "--graphs", "3", "--workers", "1", "--without-models")


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *options: str) -> int:
    arguments = ["bench_checker", *SMALL, "--output", str(folder / "findings"), *options]
    monkeypatch.setattr(sys, "argv", arguments)
    try:
        return bench_checker.main()
    finally:
        logging.disable(logging.NOTSET)


def test_counts_as_json(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path, "--format", "json", "--seed", "9") == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["mutation"] for row in found["mutants"]] == [*MUTATIONS, "all"]
    assert found["mutants"][-1]["mutants"] == 4
    assert sum(n for what, n in found["graphs"].items() if what.startswith("graphs: ")) == 3
    assert (found["seed"], found["findings"]) == (9, [])
    assert set(found["processor_seconds_per_1000"]) == {"mutants", "graphs"}
    assert not (tmp_path / "findings").exists()


def test_findings_are_saved_and_fail(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finding = Finding("seed 4: accepted", "why", {"source": "the source"})
    tallies = iter([Tally(findings=[finding]), Tally()])
    monkeypatch.setattr(bench_checker, "run", lambda *_: next(tallies))
    assert run(monkeypatch, tmp_path) == 1
    folder = tmp_path / "findings" / "000"
    assert (folder / "finding.txt").read_text() == "seed 4: accepted\nwhy\n"
    assert (folder / "source.spmd").read_text() == "the source"
    assert "1 findings, in" in capsys.readouterr().out.replace("\n", " ")


def test_tasks_make_up_the_total() -> None:
    assert bench_checker.batches(250) == [100, 100, 50]
    assert bench_checker.batches(0) == []
