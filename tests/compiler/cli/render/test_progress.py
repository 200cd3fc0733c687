"""Tables fit 80 columns off a terminal, and nothing in them is cut off."""

import pytest


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["machine", "list"], "rtxpro6000x8"),
        (["machine", "show", "h200x8"], "reduce_scatter"),
        (["rules"], "aten._scaled_grouped_mm_v2.default"),
        (["plan", "two_sums.spmd"], "16384 tokens"),
    ],
)
def test_tables_fit_80_columns(run, two_sums, monkeypatch, command, text):
    monkeypatch.chdir(two_sums.parent)
    found = run(*command)
    assert found.code == 0
    assert text in found.out
    assert "…" not in found.out
    wide = [line for line in found.out.splitlines() if len(line) > 80]
    assert all(line.startswith(("EQUIVALENT", "  rounding", "1: ", "2: ", "3: ")) for line in wide)
