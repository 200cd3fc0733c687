"""``commplan check``."""

import json

import pytest


@pytest.fixture
def target(tmp_path, two_sums):
    """Writes the source with one text replaced, as another graph file."""

    def write(old, by):
        text = two_sums.read_text()
        assert old in text
        path = tmp_path / "target.spmd"
        path.write_text(text.replace(old, by))
        return path

    return write


MERGED = """%2: f32[s0, 8] = aten.add.Tensor(%0, %1)
  %3: f32[s0, 8] = comm.all_reduce(%2) {axis = tp, op = sum}
  return (%3,)
}
"""


def test_identical(run, two_sums):
    found = run("check", two_sums, two_sums)
    assert (found.code, found.out) == (0, "IDENTICAL  source and target are the same graph\n")


def test_equivalent_tells_what_rounds_differently(run, two_sums, tmp_path):
    merged = tmp_path / "merged.spmd"
    merged.write_text(two_sums.read_text().split("%2:")[0] + MERGED)
    found = run("check", two_sums, merged)
    assert found.code == 0
    assert found.out.startswith("EQUIVALENT  all 1 outputs are the same function")
    assert "rounding: 1 x all_reduce over tp takes aten.add.Tensor" in found.out


def test_not_equivalent_shows_a_counterexample(run, two_sums, target):
    wrong = target("aten.add.Tensor(%2, %3)", "aten.add.Tensor(%2, %2)")
    found = run("check", two_sums, wrong)
    assert found.code == 1
    assert found.out.startswith("NOT_EQUIVALENT  output 0 on rank")
    assert "counterexample: inputs of seed 0, output 0, rank 0" in found.out
    report = json.loads(run("check", two_sums, wrong, "--format", "json").out)
    assert report["verdict"] == "NOT_EQUIVALENT"
    assert report["counterexample"]["output"] == 0


def test_graphs_that_cannot_be_compared(run, two_sums, target):
    found = run("check", two_sums, target("tp = 4", "tp = 2"))
    assert found.code == 3
    assert found.out.startswith("INVALID  the meshes differ")


def test_unproved(run, two_sums, target):
    # Too large to simulate, so that a difference cannot be decided.
    large = two_sums.read_text().replace("f32[s0, 8]", "f32[s0, 90000000]")
    two_sums.write_text(large)
    found = run("check", two_sums, target("Tensor(%2, %3)", "Tensor(%2, %2)"))
    assert found.code == 2
    assert found.out.startswith("UNPROVED  output 0 is not shown equal")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read the file"),
        (b"\xff\xfe", "cannot read the file"),
        (b"mesh <tp = 4> func", "expected"),
        (b"mesh <tp = 0>\nfunc @f() {\n  return\n}\n", "axis 'tp' has no ranks"),
    ],
)
def test_unreadable_text(run, two_sums, tmp_path, text, message):
    path = tmp_path / "bad.spmd"
    if text is not None:
        path.write_bytes(text)
    found = run("check", two_sums, path)
    assert (found.code, found.out) == (3, "")
    assert found.err.splitlines()[-1].startswith(" ") or "error:" in found.err
    assert message in found.err
    assert str(path) in found.err


def test_other_files_and_idle_options(run, two_sums, tmp_path):
    assert "not a graph file" in run("check", two_sums, tmp_path / "graph.onnx").err
    found = run("check", two_sums, two_sums, "--mesh", "tp=4")
    assert found.code == 3
    assert "--mesh given for a .spmd file" in found.err
