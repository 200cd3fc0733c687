"""docs/example, a repository with its workflow: every step runs, and a mistake is found by each."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from tests.compiler.cli.conftest import run  # noqa: F401

EXAMPLE = Path(__file__).parents[1] / "docs" / "example"
WORKFLOW = (EXAMPLE / ".github/workflows/collectives.yml").read_text()
ACCEPTED = re.search(r"accepted: (.*)", WORKFLOW)[1]
STEPS = [
    shlex.split(step.replace("$accepted", ACCEPTED).partition(" >>")[0])
    for step in re.findall(r"- run: (.*)", WORKFLOW)
]
TEN_MINUTES = re.findall(
    r"^    (commplan .*?)(?: +#.*)?$",
    (EXAMPLE.parents[1] / "README.md")
    .read_text()
    .partition("## Ten minutes")[2]
    .partition("##")[0],
    re.MULTILINE,
)
TWICE = 'self.down(funcol.all_reduce(self.up(x), "sum", dist.group.WORLD).relu())'


@pytest.fixture
def steps(run, tmp_path, monkeypatch):  # noqa: F811
    """Runs the workflow's commands in a copy of the repository."""
    shutil.copytree(EXAMPLE, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_model", raising=False)
    return lambda: {words[1]: run(*words[1:]) for words in STEPS if words[0] == "commplan"}


def test_every_step_ends_well(steps):
    ends = steps()
    assert [words[0] for words in STEPS] == ["pip", "python", *["commplan"] * len(ends)]
    assert {name: (end.code, end.err.count("error")) for name, end in ends.items()} == (
        dict.fromkeys(("capture", "diff", "collectives", "lint", "verify", "plan"), (0, 0))
    )
    assert "coverage 100 %25" in ends["lint"].out
    assert "| total | 8 → 4 |" in ends["plan"].out


def test_the_first_ten_minutes(steps, run):  # noqa: F811
    assert [command.split()[1] for command in TEN_MINUTES] == [
        "plan", "collectives", "lint", "verify", "report"
    ]  # fmt: skip
    shown = [run(*command.split()[1:]) for command in TEN_MINUTES]
    assert [one.code for one in shown] == [0] * len(shown)
    assert "8 → 4" in shown[0].out
    assert Path("report.html").stat().st_size > 10_000


def test_a_mistake_is_found_by_each(steps):
    model = Path("my_model.py")
    model.write_text(model.read_text().replace("self.down(self.up(x).relu())", TWICE))
    ends = steps()
    codes = {name: end.code for name, end in ends.items()}
    assert codes == {
        "capture": 0, "diff": 1, "collectives": 1, "lint": 1, "verify": 1, "plan": 0
    }  # fmt: skip
    assert ends["diff"].out.startswith("::error file=my_model.py,line=16,title=collectives::layers")
    assert "16 all_reduces, at most 4 allowed" in ends["collectives"].out
    assert ends["lint"].out.startswith("::error file=my_model.py,line=16,title=")
    assert ends["verify"].out.startswith("::error title=commplan verify::NOT_EQUIVALENT")
