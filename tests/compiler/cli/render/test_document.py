"""A result in every format, and what is escaped there."""

import json

import pytest
from rich.table import Column

from compiler.cli.arguments import FORMATS, TABLES
from compiler.cli.render.document import Annotation, Document
from compiler.cli.render.progress import new_table

ESCAPE = "\x1b[31m"


@pytest.fixture
def document():
    table = new_table("name", Column("n", justify="right"), title="a_table", caption="a note")
    table.add_row("a|b\nbelow", "1")
    notes = [Annotation("error", "of: all", f"50 %\n{ESCAPE}")]
    return Document("thing/2", {"n": 1}, ["one *line*", "two\n  lines", table], notes)


def test_text(document, capsys):
    document.print("text")
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[:4] == ["one *line*", "two", "  lines", "a_table"]
    assert [line.split() for line in lines[-4:-1]] == [["a|b", "1"], ["below"], []]
    assert lines[-1] == "a note"


def test_json_states_its_schema(document, capsys):
    document.print("json")
    assert json.loads(capsys.readouterr().out) == {"schema": "commplan.thing/2", "n": 1}


def test_annotations_of_github(document, capsys):
    document.print("github")
    assert capsys.readouterr().out == (
        "::error title=of%3A all::50 %25%0A" + r"\x1b[31m" + "\n"
    )  # fmt: skip


def test_markdown(document, capsys):
    document.print("markdown")
    assert (
        capsys.readouterr().out
        == r"""one \*line\*

```text
two
  lines
```

**a\_table**

| name | n |
| --- | --: |
| a\|b<br>below | 1 |

a note
"""
    )


def test_no_format_lets_control_codes_through(capsys):
    for name in (*FORMATS, "markdown"):
        Document("x/1", {"x": ESCAPE}, [ESCAPE], [Annotation("notice", "x", ESCAPE)]).print(name)
    assert "\x1b" not in capsys.readouterr().out


def test_places_are_those_of_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "moe,1.py"
    path.write_text("")
    of = {"severity": "warning", "title": "t", "message": "m"}
    assert str(Annotation(**of, place=f"{path}:12")) == (
        "::warning file=models/moe%2C1.py,line=12,title=t::m"
    )
    assert str(Annotation(**of, place="models/moe,1.py")) == (
        "::warning file=models/moe%2C1.py,title=t::m"
    )
    for elsewhere in ("moe.py:12", "", "/usr/lib/x.py:1"):
        assert str(Annotation(**of, place=elsewhere)) == "::warning title=t::m"


@pytest.mark.parametrize("command", ["plan", "lint", "collectives"])
@pytest.mark.parametrize("form", FORMATS)
def test_commands_about_a_graph_have_every_format(run, two_sums, command, form):
    shown = run(command, two_sums, "--format", form)
    assert (shown.code, bool(shown.out)) == (0, True)
    if form == "json":
        assert json.loads(shown.out)["schema"].startswith("commplan.")
    if form == "github":
        assert all(line.startswith(("::notice", "::error")) for line in shown.out.splitlines())


@pytest.mark.parametrize("command", ["check", "diff"])
def test_commands_about_two_graphs_have_every_format(run, two_sums, tmp_path, command):
    other = tmp_path / "other.spmd"
    other.write_text(two_sums.read_text().replace("(%2, %3)", "(%2, %2)").replace("%3: ", "%3: "))
    if command == "diff":
        other.write_text(two_sums.read_text().replace("op = sum", "op = max", 1))
    for form in FORMATS:
        shown = run(command, two_sums, other, "--format", form)
        assert (shown.code, bool(shown.out)) == (1, True)
        assert shown.out.startswith("::error ") == (form == "github")


@pytest.mark.parametrize("command", [["rules", "mm"], ["machine", "list"]])
def test_lists_have_every_format_but_annotations(run, command):
    for form in TABLES:
        assert run(*command, "--format", form).code == 0
    assert run(*command, "--format", "github").code == 3
