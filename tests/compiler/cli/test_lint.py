"""``commplan lint``."""

import json

import pytest

GRAPH = """mesh <tp = 4>
func @main(%0 "x": f64[4, 8] {{tp: P}}, %1 "y": f64[4, 8]) {{
  %2: f64[4, 8] = comm.all_reduce(%0) {{axis = tp, op = sum}}
{last}
}}
"""
RIGHT = "  %3: f64[4, 8] = aten.add.Tensor(%2, %1)\n  return %3"
TWICE = "  %3: f64[4, 8] = comm.all_reduce(%2) {axis = tp, op = sum}\n  return %3"


@pytest.fixture
def written(tmp_path):
    def write(last):
        path = tmp_path / "graph.spmd"
        path.write_text(GRAPH.format(last=last))
        return path

    return write


def test_a_correct_graph_has_no_finding(run, written):
    found = run("lint", written(RIGHT))
    assert (found.code, found.out) == (0, "")
    assert "no findings" in found.err


def test_a_finding_as_text(run, written):
    found = run("lint", written(TWICE))
    assert found.code == 1
    assert found.out.startswith("double-reduction: ")
    assert "%3: f64[4, 8] = comm.all_reduce(%2)" in found.out
    assert "would be right: " in found.out
    assert "1 error" in found.err


def test_a_finding_as_json(run, written):
    found = run("lint", written(TWICE), "--format", "json")
    (one,) = json.loads(found.out)
    assert found.code == 1
    assert (one["rule"], one["severity"], one["value"]) == ("double-reduction", "error", "%3")
    assert one["message"].startswith("double-reduction: ")
    assert json.loads(run("lint", written(RIGHT), "--format", "json").out) == []


def test_a_finding_as_annotation(run, written):
    path = written(TWICE)
    found = run("lint", path, "--format", "github")
    assert found.code == 1
    assert found.out.startswith(f"::error file={path},title=double-reduction::double-reduction: ")
    assert len(found.out.splitlines()) == 1


def test_what_is_no_model(run, tmp_path):
    found = run("lint", tmp_path / "none.spmd")
    assert found.code == 3
    assert found.out == ""
    assert "cannot read the file" in found.err
