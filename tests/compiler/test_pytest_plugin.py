"""The fixture as users run it: accept, compare, change, budget."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "example"
MODEL, TEST = ((EXAMPLE / name).read_text() for name in ("my_model.py", "test_collectives.py"))
WRONG = """
def test_what_is_no_graph(collectives_snapshot):
    collectives_snapshot(3)
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "my_model.py").write_text(MODEL)
    (tmp_path / "test_collectives.py").write_text(TEST)
    return tmp_path


def ended(project: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and output of pytest in a project of its own."""
    path = os.pathsep.join(filter(None, [str(project), *sys.path]))
    environment = os.environ | {"PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "compiler.pytest_plugin"]
    process = subprocess.run(
        [*command, "-p", "no:cacheprovider", *arguments],
        cwd=project, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return process.returncode, process.stdout


def test_a_list_is_accepted_compared_and_found_changed(project):
    code, said = ended(project)
    assert code == 1
    assert "no list of collectives in" in said
    assert "accept with pytest --commplan-update" in said

    assert ended(project, "--commplan-update")[0] == 0
    file = project / "__collectives__" / "test_collectives.test_collectives.json"
    rows = json.loads(file.read_text())["collectives"]
    assert [row["layer"] for row in rows] == [
        f"layers.{i}.{name}" for i in range(4) for name in ("routed", "shared")
    ]
    assert file.read_text() == (EXAMPLE / "__collectives__" / file.name).read_text()

    moved = "# moved by a line\n" + MODEL
    (project / "my_model.py").write_text(moved)
    assert ended(project)[0] == 0

    again = 'self.down(funcol.all_reduce(self.up(x), "sum", dist.group.WORLD).relu())'
    (project / "my_model.py").write_text(MODEL.replace("self.down(self.up(x).relu())", again))
    (project / "test_collectives.py").write_text(TEST + WRONG)
    code, said = ended(project)
    assert code == 1
    assert "16 all_reduces, at most 8 allowed" in said
    assert "must be given a model's name or a graph" in said
    (project / "test_collectives.py").write_text(TEST.replace(": 8", ": 16"))
    assert (
        "layers.{0-3}.routed: +1 all_reduce f32[s0, 16] over tp, my_model.py:16"
        in ended(project)[1]
    )
