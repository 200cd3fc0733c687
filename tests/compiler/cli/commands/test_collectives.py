"""``commplan collectives`` and ``commplan diff``."""

import json

import pytest

from compiler.snapshot import SCHEMA

MERGED = """  %2: f32[s0, 8] = aten.add.Tensor(%0, %1)
  %3: f32[s0, 8] = comm.all_reduce(%2) {axis = tp, op = sum}
  return (%3,)
}
"""
ROW = "all_reduce f32[s0, 8] over tp"
MARKDOWN = r"all\_reduce f32\[s0, 8\] over tp"


@pytest.fixture
def merged(tmp_path, two_sums):
    path = tmp_path / "merged.spmd"
    path.write_text(two_sums.read_text().split("  %2:")[0] + MERGED)
    return path


def test_a_table(run, two_sums):
    found = run("collectives", two_sums)
    assert found.code == 0
    assert " ".join(found.out.split()[-8:]) == f"outside modules 2 {ROW}"


def test_markdown(run, two_sums):
    found = run("collectives", two_sums, "--format", "markdown")
    assert found.out.splitlines()[-1] == f"| outside modules | 2 | {MARKDOWN} |  |"


def test_a_list_is_read_again(run, two_sums, merged, tmp_path):
    found = run("collectives", two_sums, "--format", "json")
    assert json.loads(found.out)["schema"] == SCHEMA
    file = tmp_path / "accepted.json"
    file.write_text(found.out)
    assert run("diff", file, two_sums).code == 0
    changed = run("diff", file, merged)
    assert (changed.code, changed.out) == (1, f"outside modules: -1 {ROW}\n")
    assert run("diff", file, merged, "--format", "github").out == (
        f"::error title=collectives::outside modules: -1 {ROW}\n"
    )
    assert json.loads(run("diff", file, merged, "--format", "json").out)["changes"] == [
        f"outside modules: -1 {ROW}"
    ]
    assert run("diff", merged, file, "--format", "markdown").out.endswith(
        f"outside modules: +1 {MARKDOWN}\n"
    )


def test_budgets_before_and_after(run, two_sums):
    found = run("collectives", two_sums, "--max", "all_reduce=1")
    assert found.code == 1
    assert found.out.endswith(f"{two_sums}: 2 all_reduces, at most 1 allowed\n")
    listed = run("collectives", two_sums, "--max", "all_reduce=1", "--format", "github")
    assert listed.out.splitlines() == [
        f"::error title=collectives::{two_sums}: 2 all_reduces, at most 1 allowed",
        f"::notice title=collectives::{two_sums}: 2 all_reduce",
    ]
    as_json = run("collectives", two_sums, "--max", "all_reduce=1", "--format", "json")
    assert json.loads(as_json.out)["schema"] == SCHEMA
    assert as_json.err.endswith("2 all_reduces, at most 1 allowed\n")
    assert run("collectives", two_sums, "--max", "all_reduce=1", "--optimized").code == 0


@pytest.mark.parametrize("text", ["all_reduce", "all_reduce=-1", "sum=3"])
def test_bad_budgets(run, two_sums, text):
    found = run("collectives", two_sums, "--max", text)
    assert found.code == 3
    assert "error: " in found.err
    assert "Traceback" not in found.err


def test_a_list_that_is_none(run, two_sums, tmp_path):
    file = tmp_path / "other.json"
    file.write_text("{}")
    found = run("diff", file, two_sums)
    assert found.code == 3
    assert "must be JSON of schema" in found.err
    assert run("diff", tmp_path / "absent.json", two_sums).code == 3
