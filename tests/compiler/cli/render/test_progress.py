"""Tables fit 80 columns off a terminal, and nothing in them is cut off."""

import re
from pathlib import Path

import pytest

CSV = str(Path(__file__).parents[3] / "bench" / "h100.csv")


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["machine", "list"], "rtxpro6000x8"),
        (["machine", "show", "h200x8"], "reduce_scatter"),
        (["machine", "fit", CSV, "--machine=h100x8"], "8 of 8 tables"),
        (["rules"], "aten._scaled_grouped_mm_v2.default"),
        (["plan", "two_sums.spmd"], "16384"),
        (["plan", "two_sums.spmd", "--machine=h200x8"], "divisible by 4"),
        (["plan", "two_sums.spmd", "--machine=h200x8", "--compare=gb200"], "gb200"),
    ],
)
def test_tables_fit_80_columns(run, two_sums, monkeypatch, command, text):
    monkeypatch.chdir(two_sums.parent)
    found = run(*command)
    assert found.code == 0
    assert text in found.out
    assert not re.search(r"\w…", found.out)
    lines = found.out.splitlines()
    wide = [line for line in lines if len(line) > 80 and not re.match(r"\d: ", line)]
    assert {line.split()[0] for line in wide} <= {"EQUIVALENT", "rounding:", "not", "two_sums.spmd"}
