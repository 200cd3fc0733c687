"""Assumptions, remarks and verdicts."""

from compiler.check import Verdict
from compiler.cli.entry import ExitCode
from compiler.cli.render.report import assumptions, layers_by_text


def test_assumptions_by_reason():
    texts = ["parameter 'l.0.w': declared", "parameter 'l.1.w': declared", "numbers agree"]
    assert list(assumptions(texts)) == ["2 x parameter: declared  (l.{0-1}.w)", "numbers agree"]


def test_texts_that_differ_in_names_are_one_with_the_first_names():
    lines = [("l.0", "kept: adds %b"), ("l.1", "kept: adds %v7"), ("l.2", "moved")]
    assert layers_by_text(lines) == {
        "kept: adds %b; 1 more like it": ["l.0", "l.1"], "moved": ["l.2"]
    }  # fmt: skip


def test_every_verdict_has_an_exit_code():
    codes = {verdict: ExitCode[verdict] for verdict in Verdict}
    assert [codes[v] == ExitCode.OK for v in Verdict] == [v.runs for v in Verdict]
    assert len(set(codes.values())) == 4
