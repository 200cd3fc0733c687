"""The benchmark of what takes several GPUs: whole on two gloo ranks, and part by part."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from compiler.cost import load_machine
from compiler.errors import CommPlanError
from compiler.ir.collectives import Kind
from scripts.multi_gpu import tables
from scripts.multi_gpu.forms import BY_HAND, FORMS, PLANNED, WRITTEN
from scripts.multi_gpu.links import compared
from scripts.multi_gpu.model import refuse_unless_equal
from scripts.multi_gpu.predictions import kernel_rows, link_rows, model_rows
from scripts.multi_gpu.ranks import WrongResultError
from scripts.multi_gpu.results import Results
from scripts.multi_gpu.targets import targets

H100 = "h100x8"
MIB = 1 << 20


def run(*options: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "scripts.bench_multi_gpu", "--device", "cpu", *options]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=200)


@pytest.mark.campaign
def test_all_parts_on_two_ranks(tmp_path: Path) -> None:
    sizes = ["--prefill", "32", "--decode", "", "--rounds", "2", "--max-bytes", "4096"]
    small = ["--small", "--layers", "3", "--ranks", "2", "--experts", "tp"]
    ran = run(*small, *sizes, "--output", str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    parts = ("kernels", "links", "model", "predictions")
    files = {f"{part}.json" for part in parts} | {"machine.json"}
    assert {path.name for path in tmp_path.iterdir()} == files  # no partial ones
    found = {part: json.loads((tmp_path / f"{part}.json").read_text()) for part in parts}
    assert found["links"]["facts"] == found["model"]["facts"]
    assert (found["links"]["facts"]["ranks"], found["links"]["facts"]["device"]) == (2, "cpu")
    machine = load_machine(tmp_path / "machine.json")
    assert {(t.kind, t.ranks) for t in machine.tables} == {
        (kind, 2)
        for kind in (Kind.ALL_REDUCE, Kind.REDUCE_SCATTER, Kind.ALL_GATHER, Kind.ALL_TO_ALL)
    }
    rows = found["model"]["rows"]
    assert [row["form"] for row in rows] == list(FORMS)
    counts = [sum(n for *_, n in row["collectives"]) for row in rows]
    assert counts[:3] == [9, 8, 8]
    assert counts[3] > 0  # what is planned depends on times measured just now
    for row in rows:
        assert len(row["rounds_us"]) == 2
        assert 0 < row["communication_share"] <= 1
        assert row["difference"] <= row["allowed"]
        assert row["machine"] == "measured-2"
    predicted = found["predictions"]
    listed = {p: sum(r["part"] == p for r in predicted["rows"]) for p in ("links", "forward")}
    assert listed == {"links": 4 * 4, "forward": 4}
    assert predicted["targets"][0]["met"] is None  # 8,192 tokens were not run
    for said in ("skipped: kernels: they run on GPUs only", "CUDA graphs", "Step-3.5", "targets"):
        assert said in ran.stdout

    again = run("--parts", "predictions", "--machine", H100, "--output", str(tmp_path))
    assert again.returncode == 0, again.stderr
    assert "predicted by h100x8" in again.stdout
    again = run("--parts", "predictions", "--output", str(tmp_path))
    assert again.returncode == 0, again.stderr
    assert "predicted by measured-2" in again.stdout


@pytest.mark.campaign
def test_a_signal_ends_it_with_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scripts.bench_multi_gpu", "--device", "cpu", "--small"]
    run = subprocess.Popen(
        [*command, "--ranks", "2", "--output", str(tmp_path)], stderr=subprocess.PIPE, text=True
    )
    assert run.stderr is not None
    told = [run.stderr.readline()]  # all ranks are there
    run.terminate()
    told += run.communicate(timeout=60)[1].splitlines()
    assert run.returncode == 128 + signal.SIGTERM, told
    assert told[-1] == f"error: ended by SIGTERM; what was finished: {tmp_path}"
    assert not any("Traceback" in line for line in told)


REFUSED = {
    "part": (["--small", "--parts", "links,wires"], 2, "unknown 'wires'; known: links, kernels"),
    "ranks": (["--small", "--ranks", "1"], 2, "found 1; the least is 2"),
    "number": (["--small", "--rounds", "many"], 2, "'many' is not a whole number"),
    "rounds": (["--small", "--rounds", "0"], 2, "found 0; the least is 1"),
    "cpu": ([], 3, "without GPUs only a trial is possible"),
    "calls": (["--small", "--prefill", "", "--decode", ""], 3, "needs --prefill or --decode"),
    "rows": (["--parts", "kernels", "--rows", ""], 3, "the kernels part needs --rows"),
    "divide": (["--small", "--ranks", "3"], 3, "does not divide over 3 ranks, experts by tp"),
    "machine": (["--small", "--machine", "abacus"], 3, "abacus"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options, code, text = REFUSED[case]
    found, err = refused(monkeypatch, capsys, *options, "--output", str(tmp_path))
    assert found == code
    assert text in err
    assert list(tmp_path.iterdir()) == []


def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: str
) -> tuple[int, str]:
    from scripts.bench_multi_gpu import main

    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["bench_multi_gpu", "--device", "cpu", *options])
    with pytest.raises(SystemExit) as ended:
        sys.exit(main())
    assert isinstance(ended.value.code, int)
    return ended.value.code, capsys.readouterr().err


def test_a_file_is_no_output_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    code, err = refused(monkeypatch, capsys, "--small", "--output", str(tmp_path / "file" / "in"))
    assert code == 3
    assert "cannot write results" in err
    assert "name another folder with --output" in err


def test_nothing_to_predict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--parts", "predictions", "--output", str(tmp_path))
    code, err = refused(monkeypatch, capsys, *options)
    assert (code, "there is nothing to predict" in err) == (3, True)
    for broken in ("{", '{"facts": 3}'):
        (tmp_path / "links.json").write_text(broken)
        code, err = refused(monkeypatch, capsys, *options)
        assert code == 3
        assert "cannot read the results of the links part" in err


def test_ranks_that_shared_a_gpu_say_nothing_about_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = {"ranks": 2, "device": "NVIDIA H200", "ranks_share_a_gpu": True}
    Results(tmp_path, facts).write("model", {"rows": []})
    code, err = refused(
        monkeypatch, capsys, "--parts", "predictions", "--machine", H100, "--output", str(tmp_path)
    )
    assert code == 3
    assert "there is nothing to predict" in err
    assert "the ranks share a GPU: times say nothing about links" in err
    assert not (tmp_path / "predictions.json").exists()


def test_results_of_an_older_version_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "links.json").write_text('{"facts": {"ranks": 8, "format": 1}, "rows": []}')
    options = ("--parts", "predictions", "--output", str(tmp_path))
    code, err = refused(monkeypatch, capsys, *options)
    assert (code, "there is nothing to predict" in err) == (3, True)
    assert "links.json of an earlier run with {'format': 1}, where this one has" in err


def test_results_of_other_circumstances_are_named(tmp_path: Path) -> None:
    Results(tmp_path, {"ranks": 8}).join("model", "rows", [{"form": "a", "x": 1}], ("form",))
    same = Results(tmp_path, {"ranks": 8})
    same.join("model", "rows", [{"form": "a", "x": 2}, {"form": "b", "x": 3}], ("form",))
    found = same.read("model")
    assert found is not None
    assert found["rows"] == [{"form": "a", "x": 2}, {"form": "b", "x": 3}]
    other = Results(tmp_path, {"ranks": 4})
    assert other.read("model") is None
    (note,) = other.passed_over
    assert "{'ranks': 8}, where this one has {'ranks': 4}" in note


def row(form: str, time_us: float, ratio: float, sent_us: float) -> dict[str, Any]:
    return {
        "experts": "tp", "call": "prefill", "tokens": 8192, "form": form, "launch": "eager",
        "time_us": time_us, "busy_us": time_us, "ratio": ratio, "communication_us": sent_us,
        "communication_share": sent_us / time_us, "communication_by_rank_us": [sent_us] * 8,
        "rounds_us": [time_us], "collectives": [["all_reduce", 64 * MIB, 135]], "verdict": "",
        "tokens_s": 8192 / time_us * 1e6, "difference": 0.0, "allowed": 1.0,
    }  # fmt: skip


def test_targets_and_causes() -> None:
    model = [
        row(WRITTEN, 1000.0, 1.0, 100.0),
        row(BY_HAND, 900.0, 1.11, 50.0),
        row(PLANNED, 950.0, 1.05, 40.0),
    ]
    rows = model_rows(load_machine(H100), model, 8)
    gain, by_hand, links, kernels, sent, forward = targets(model, rows)
    assert gain.met is False
    assert "free of it, 1.111 at most" in gain.cause
    assert by_hand.met is False
    assert "communication -10 us, computation +60 us" in by_hand.cause
    assert (links.met, kernels.met) == (None, None)
    assert (sent.met, forward.met) == (False, False)
    assert sent.found.startswith("0 of 3 met; worst: tp prefill 8192, optimized, cost")
    met = [row(WRITTEN, 1000.0, 1.0, 300.0), row(BY_HAND, 900.0, 1.1, 200.0)]
    met.append(row(PLANNED, 800.0, 1.25, 100.0))
    assert [(one.met, one.cause) for one in targets(met, [])[:2]] == [(True, "")] * 2


def test_predictions_by_a_shipped_machine() -> None:
    machine = load_machine(H100)
    all_reduce = machine.collective_time_ps(Kind.ALL_REDUCE, 64 * MIB, (8, 1), launch="eager") / 1e6
    sent, forward = model_rows(machine, [row(WRITTEN, 1e5, 1.0, 4e4)], 8)
    assert sent["predicted_us"] == pytest.approx(135 * all_reduce)
    assert sent["error"] == pytest.approx(sent["predicted_us"] / 4e4 - 1)
    assert forward["predicted_us"] == pytest.approx(6e4 + sent["predicted_us"])
    table = {"kind": "all_reduce", "ranks": 8, "library": "NCCL", "class": "nccl",
             "launches": ["eager"], "rows": [[64 * MIB, all_reduce / 2]]}  # fmt: skip
    (link,) = link_rows(machine, [table])
    assert link["error"] == pytest.approx(1)
    (beside,) = [one for one in compared([table], machine) if one["known"]]
    (known,) = [
        one
        for one in machine.tables_of(Kind.ALL_REDUCE, 8)
        if one.library == beside["known"] and "eager" in one.launches
    ]
    known_us = known.curve.time_ps(64 * MIB) / 1e6
    assert beside["median"] == beside["maximum"] == pytest.approx(all_reduce / 2 / known_us - 1)
    fused = {"rows": 8192, "launch": "eager", "unfused": 1e3, "op": 1e3, "op, shares": 1e3}
    assert [one["what"] for one in kernel_rows(machine, [fused], 8)] == [
        "unfused, 8192 rows", "op, 8192 rows", "op, shares, 8192 rows"
    ]  # fmt: skip


def test_tables_show_every_row() -> None:
    model = [row(form, 1000.0, 1.0, 100.0) for form in FORMS]
    rows = model_rows(load_machine(H100), model, 8)
    judged = [vars(one) for one in targets(model, rows)]
    console = Console(file=io.StringIO(), width=170)
    tables.show_model(console, model)
    tables.show_predictions(console, {"machine": H100, "rows": rows, "targets": judged})
    tables.show_kernels(console, {"rows": []})
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for form in FORMS:
        assert shown.count(form) >= 3
    assert shown.count("not measured") == 4
    assert "8,192,000" in shown  # tokens/s


def test_outputs_too_far_apart_are_refused() -> None:
    refuse_unless_equal({"a": 3e-3}, 1e-3)
    for far, sensitivity in ((3.1e-3, 1e-3), (float("inf"), 1e-3), (0.6, 1.0)):
        with pytest.raises(WrongResultError, match="outputs of the form 'a' differ"):
            refuse_unless_equal({"a": far}, sensitivity)
    assert issubclass(WrongResultError, CommPlanError)
