"""The command: parts, one table, findings and figures in a folder, exit code."""

from __future__ import annotations

import json
import logging
import sys
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scripts import campaign
from scripts.campaign import PARTS, Result
from scripts.mutate import MUTATIONS
from scripts.mutate.campaign import Finding

SMALL = ("--mutants", "4", "--graphs", "3", "--workers", "1", "--without-models")
FINDING = Finding("seed 4: accepted", "why", {"source": "the source"})


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *options: str) -> int:
    monkeypatch.setattr(campaign, "processes", ThreadPoolExecutor)
    monkeypatch.setattr(sys, "argv", ["campaign", "--output", str(folder), *options])
    try:
        return campaign.main()
    finally:
        logging.disable(logging.NOTSET)


def test_mutants_and_random_graphs_are_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (*SMALL, "--seed", "9", "random-graphs", "mutants")
    assert run(monkeypatch, tmp_path, *options) == 0
    table = capsys.readouterr().out.splitlines()
    columns = [line.split("│") for line in table if "│" in line]
    cells = [[cell.strip() for cell in line] for line in columns]
    assert [(line[1], line[3], line[4], line[6]) for line in cells] == [
        ("random-graphs", "3", "0", "ok"), ("mutants", "4", "0", "ok")
    ]  # fmt: skip
    rows = json.loads((tmp_path / "mutants" / "figures.json").read_text())["by mutation"]
    assert [row["mutation"] for row in rows] == [*MUTATIONS, "all"]


def test_findings_are_saved_and_fail_and_other_parts_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash(_: Namespace) -> Result:
        raise ValueError("no such case")

    parts = {
        "first": lambda _: Result(7, [FINDING]),
        "second": crash,
        "third": lambda _: Result(0, []),
        "fourth": lambda _: Result(2, []),
    }
    monkeypatch.setattr(campaign, "PARTS", {name: (part, "") for name, part in parts.items()})
    (tmp_path / "first" / "001").mkdir(parents=True)
    assert run(monkeypatch, tmp_path) == 1
    assert not (tmp_path / "first" / "001").exists()
    folder = tmp_path / "first" / "000"
    assert (folder / "finding.txt").read_text() == "seed 4: accepted\nwhy\n"
    assert (folder / "source.spmd").read_text() == "the source"
    assert "ValueError: no such case" in (tmp_path / "second/000/finding.txt").read_text()
    assert (tmp_path / "third/000/finding.txt").read_text() == "nothing ran\n\n"
    assert capsys.readouterr().out.count("FAILED") == 3


def test_tests_that_fail_are_findings(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): assert 1 == 2\n"
        "@pytest.mark.skip\ndef test_c(): pass\n"
    )
    result = campaign.tested(Namespace(workers=0), str(tmp_path))
    assert (result.count, result.figures) == (2, {"skipped": 1})
    (finding,) = result.findings
    assert finding.title.endswith("test_it::test_b")
    assert "assert 1 == 2" in finding.explanation
    (finding,) = campaign.tested(Namespace(workers=0), str(tmp_path / "none")).findings
    assert finding.explanation == "exit code 4"


def test_parts_are_listed_and_others_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path, "--list") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [*PARTS]
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, tmp_path, "mutant")
    assert ended.value.code == 2
    assert "unknown: mutant; known: mutants, random-graphs" in capsys.readouterr().err


def test_tasks_make_up_the_total() -> None:
    assert campaign.batches(250) == [100, 100, 50]
    assert campaign.batches(0) == []
