"""Rows in, machine files out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bench.fit import errors
from bench.measurements import (
    COLUMNS,
    machine_text,
    newest,
    read_measurements,
    refitted,
)
from compiler.cost import MachineError, load_machine, machines
from compiler.cost.machine_files import FOLDER, read_json

CSV = Path(__file__).parent / "h100.csv"
ROWS = read_measurements(CSV)
EVERYTHING = os.environ.get("COMMPLAN_MEASUREMENTS")


def test_tables_of_a_file() -> None:
    by_name = {(one.kind, one.library): one for one in ROWS}
    nccl, vllm = by_name["all_reduce", "NCCL 2.29.2"], by_name["all_reduce", "vllm 0.24.0"]
    assert [str(launch) for launch in nccl.launches] == ["eager", "graph"]
    assert [str(launch) for launch in vllm.launches] == ["graph"]
    assert (nccl.library_class, vllm.library_class) == ("nccl", "custom")
    assert (nccl.ranks, nccl.points[0], nccl.points[-1][0]) == (8, (1024, 15.6), 512 << 20)


def test_the_newest_version_counts_and_the_older_is_named() -> None:
    kept, older = newest(ROWS)
    assert {one.library for one in older} == {"vllm 0.14.0"}
    assert len(kept) + len(older) == len(ROWS) == 5


HEADING = ",".join(COLUMNS)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "ValueError: no column source, gpu, n_ranks, library, op, bytes, time_us, notes"),
        ("a,b\n", "ValueError: no column source, gpu, n_ranks, library, op, bytes, time_us, notes"),
        ("gpu,n_ranks\na,2\n", "ValueError: no column source, library, op, bytes, time_us, notes"),
        (f"{HEADING}\n", "ValueError: no rows"),
        (f"{HEADING}\na,b\n", "ValueError: line 2: op must be one of all_reduce, "),
        (f"{HEADING}\na,b,2,c,d,8,1.0,\n", "ValueError: line 2: op must be one of all_reduce, "),
        *(
            (f"{HEADING}\na,b,{row},\n", f"ValueError: line 2: {column} must be a number, got ")
            for row, column in (
                ("x,c,all_reduce,8,1.0", "n_ranks"),
                ("1,c,all_reduce,8,1.0", "n_ranks"),
                ("2,c,all_reduce,8.5,1.0", "bytes"),
                ("2,c,all_reduce,8,-1.0", "time_us"),
                ("2,c,all_reduce,8,0", "time_us"),
                ("2,c,all_reduce,8,nan", "time_us"),
                ("2,c,all_reduce,8,inf", "time_us"),
            )
        ),
        ("\xff", "UnicodeDecodeError: "),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, found: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(MachineError, match="cannot read the measurements") as caught:
        read_measurements(path)
    assert str(path) in str(caught.value)
    assert f"  found: {found}" in str(caught.value)
    assert str(caught.value).endswith(f"  remedy: a CSV file with the columns {', '.join(COLUMNS)}")


def test_too_few_rows() -> None:
    data = {
        "title": "a",
        "rows": [
            {"kind": "all_reduce", "ranks": 2, "library": "x 1", "class": "custom",
             "launches": ["eager"], "rows": [[8, 1.0], [16, 1.0]], "source": "here"}
        ],
    }  # fmt: skip
    with pytest.raises(MachineError, match="too few rows"):
        refitted(data, ())


def test_shipped_curves_against_published_rows() -> None:
    shipped = [t for t in load_machine("h100x8").tables if t.ranks == 8]
    tables = {(str(t.kind), t.library, t.launches): t for t in shipped}
    for one in newest(ROWS)[0]:
        curve = tables[one.kind, one.library, one.launches].curve
        found = errors(one.points, [curve.time_ps(b) / 1e6 for b, _ in one.points])
        assert found.meets_targets, (one.kind, one.library, found)


def test_rows_of_a_machine_are_refitted_to_what_is_shipped() -> None:
    """The fitter and the files agree, for the rows that the files hold themselves."""
    for name in ("h100x8", "b200x8"):
        shipped = read_json(FOLDER / f"{name}.json")
        again, tables = refitted(shipped, ())
        assert tables
        assert all(table in shipped["tables"] for table in again["tables"])


@pytest.mark.skipif(not EVERYTHING, reason="COMMPLAN_MEASUREMENTS names no CSV file")
@pytest.mark.parametrize("name", machines())
def test_shipped_files_are_what_the_fit_writes(name: str) -> None:
    path = FOLDER / f"{name}.json"
    data, _ = refitted(read_json(path), read_measurements(Path(EVERYTHING or "")))
    assert machine_text(data) == path.read_text()


def test_text_is_json_with_a_line_per_table() -> None:
    text = (FOLDER / "h100x8.json").read_text()
    data = json.loads(text)
    assert machine_text(data) == text
    assert sum(line.startswith('  {"kind"') for line in text.splitlines()) == len(
        data["tables"] + data["rows"]
    )
