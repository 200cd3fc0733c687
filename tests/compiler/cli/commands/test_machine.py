"""``commplan machine``."""

import json
from pathlib import Path

from compiler.cost import load_machine, machines

CSV = Path(__file__).parents[3] / "bench" / "h100.csv"


def test_list(run):
    shown = run("machine", "list")
    assert shown.code == 0
    assert all(name in shown.out for name in machines())
    found = json.loads(run("machine", "list", "--format", "json").out)["machines"]
    assert [one["name"] for one in found] == list(machines())
    assert {"name": "gb200", "ranks": [2, 4], "title": "GB200 NVL72, one NVLink domain"} in found


def test_show(run):
    shown = run("machine", "show", "h200x8-ib400", "--ranks", "8")
    assert shown.code == 0
    for text in ("network, NCCL ring LL: 6.6 us + 2.7 us a step, 20 GB/s", "launch, graph",
                 "NCCL 2.29.2", "sglang 0.5.14", "nccl_perf.parquet", "not measured"):  # fmt: skip
        assert text in shown.out
    found = json.loads(run("machine", "show", "h100x8", "--format", "json").out)
    assert len(found["tables"]) == len(load_machine("h100x8").tables)
    assert found["quantities"]["memory"]["unit"] == "bytes/us"


def test_unknown_machines(run):
    shown = run("machine", "show", "h300")
    assert (shown.code, shown.out) == (3, "")
    assert shown.err.startswith("error: no machine 'h300'\n  found: known machines: a100x8")


def test_fit_prints_every_table_and_what_it_left_out(run, tmp_path):
    shown = run("machine", "fit", CSV, "--machine", "h100x8", "-o", tmp_path)
    assert shown.code == 0
    assert "8 of 8 tables within 5.0 % median and 20.0 % above 1 MiB" in shown.out
    assert "not used, older versions: 1 tables, 21 rows" in shown.out
    assert "vllm 0.14.0" in shown.out
    assert "fit h100x8" in shown.err
    fitted = load_machine(tmp_path / "h100x8.json")
    assert len(fitted.tables) == 8
    assert fitted.memory == load_machine("h100x8").memory


def test_fit_names_the_rows_behind_a_miss(run, tmp_path):
    lines = CSV.read_text().splitlines()
    header, rows = lines[0], [line for line in lines if "vllm 0.24.0" in line]
    for i in (13, 15, 17, 19):  # every other row above 1 MiB ten times as slow
        cells = rows[i].split(",")
        cells[6] = str(10 * float(cells[6]))
        rows[i] = ",".join(cells)
    path = tmp_path / "rows.csv"
    path.write_text("\n".join([header, *rows]))
    shown = run("machine", "fit", path, "--machine", "h100x8")
    assert "missed: H100-SXM5-80GB (NVSwitch) all_reduce, 8 ranks, vllm 0.24.0, graph" in shown.out
    assert "of the row before" in shown.out
    found = json.loads(run("machine", "fit", path, "--machine", "h100x8", "--format", "json").out)
    assert [one["meets_targets"] for one in found["machines"]["h100x8"]].count(False) == 1


def test_fit_refuses_other_files(run, tmp_path):
    shown = run("machine", "fit", tmp_path / "none.csv")
    assert shown.code == 3
    assert "error: cannot read the measurements" in shown.err


def test_measure_alone(run, tmp_path, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    path = tmp_path / "here.json"
    shown = run("machine", "measure", "--name", "here", "-o", path)
    assert (shown.code, shown.out) == (0, f"{path}\n")
    assert "measure here" in shown.err
    assert load_machine(path).name == "here"
