"""Input that is wrong, huge or hostile: one error and exit code 3, never a traceback."""

import os
from pathlib import Path

import pytest

from tests.compiler.cli.conftest import TWO_SUMS

LONG = "9" * 5000


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("g.spmd").write_text(TWO_SUMS)


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("tp = 4", "tp = 1000000000000", "a mesh has at most 16,384 ranks"),
        ("tp = 4", f"tp = {LONG}", "a number of more than 30 digits"),
        ("4096]", f"{LONG}]", "a number of more than 30 digits"),
        ("%3)", "[" * 100_000 + "%3" + "]" * 100_000 + ")", "the text is nested too deeply"),
        ("(%2, %3)", f"(%2, {'9' * 29})", "aten.add.Tensor refuses its operands"),
        (TWO_SUMS[TWO_SUMS.index("0) {axis") :], "", "the text ends in this line: is it whole?"),
        (TWO_SUMS[TWO_SUMS.index(", %3)") :], "", "found: the end of the text"),
    ],
)
def test_graph_files(run, old, new, text):
    Path("g.spmd").write_text(TWO_SUMS.replace(old, new))
    found = run("plan", "g.spmd")
    assert (found.code, found.out) == (3, "")
    assert text in found.err


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["plan", "g.spmd", "--tokens", "9" * 41], "cannot read --tokens"),
        (["plan", "g.spmd", "--tokens", LONG], "cannot read --tokens"),
        (["plan", "g.spmd", "--compare", f"h200x8:{LONG}", "--machine=h200x8"], "--compare"),
        (["dump", "g.spmd", "--layers", LONG], "cannot read --layers"),
        (["dump", "g.spmd", "--layers", f"3-{LONG}"], "cannot read --layers"),
        (["dump", "g.spmd", "--opt-bisect-limit", LONG], "must be a whole number from 0"),
        (["dump", "g.spmd", "-o", ""], "cannot write the file"),
        (["dump", "g.spmd", "-o", "."], "cannot write the file"),
        (["plan", "step3p5", "--tp", LONG], "must be a whole number from 1"),
        (["machine", "show", "h200x8", "--ranks", "3"], "found: tables of 2, 4, 8"),
        (
            ["machine", "measure", "--min-bytes=4096", "--max-bytes=1024"],
            "the largest payload is below the smallest",
        ),
    ],
)
def test_options(run, command, text):
    found = run(*command)
    assert (found.code, found.out) == (3, "")
    assert text in found.err
    assert len(found.err) < 2000


@pytest.mark.parametrize("form", ["text", "json", "dot"])
def test_names_that_are_not_utf8(run, form):
    name, output = os.fsdecode(b"\xff.spmd"), os.fsdecode(b"\xfe.out")
    Path("g.spmd").rename(name)
    printed = run("dump", name, "--format", form)
    assert printed.code == 0
    assert run("dump", name, "--format", form, "-o", output).code == 0
    assert Path(output).read_text() == printed.out
    assert "\\udcff.spmd" in run("report", name).out
    assert "where: \\udcff2.spmd" in run("plan", os.fsdecode(b"\xff2.spmd")).err


def test_names_are_neither_markup_nor_control_codes(run):
    name = "[red]\x1b[31mx.spmd"
    Path("g.spmd").rename(name)
    for found in (run("plan", name), run("lint", name), run("plan", f"{name}.spmd")):
        assert "\x1b" not in found.out + found.err
        assert "[red]\\x1b[31mx.spmd" in found.out + found.err


def test_many_ranks_take_no_longer_than_few(run):
    """Sixteen thousand; what grew with the square of them took half a minute."""
    Path("g.spmd").write_text(TWO_SUMS.replace("tp = 4", "tp = 16384"))
    assert run("lint", "g.spmd").code == 0
