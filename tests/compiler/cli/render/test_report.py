"""Assumptions by what is assumed."""

from compiler.cli.render.report import assumptions


def test_assumptions_by_reason():
    texts = ["parameter 'l.0.w': declared", "parameter 'l.1.w': declared", "numbers agree"]
    assert list(assumptions(texts)) == ["2 x parameter: declared  (l.{0-1}.w)", "numbers agree"]
