"""``commplan bisect`` and ``commplan reduce``."""

import sys

import pytest

from compiler.ir.text import parse_graph
from tests.compiler.optimize.wrong_passes import Raising, Wrong, three_layers, use


@pytest.fixture
def layers(tmp_path):
    path = tmp_path / "layers.spmd"
    path.write_text(three_layers())
    return path


@pytest.mark.parametrize("by", ["proof", "simulation"])
def test_the_rewrite_at_fault_is_printed(run, layers, monkeypatch, by):
    use(Wrong, monkeypatch)
    outcome = run("bisect", layers, "--by", by)
    first, *sites = outcome.out.splitlines()
    assert outcome.code == 1
    assert first.startswith("pass place-reductions (5): NOT_EQUIVALENT: output 0 on rank 0")
    assert len(sites) == 6
    assert all(site.startswith("  at %") for site in sites)


@pytest.mark.parametrize(("by", "what"), [("proof", "proved"), ("simulation", "the same")])
def test_right_rewrites(run, layers, by, what):
    outcome = run("bisect", layers, "--by", by)
    assert outcome.code == 0
    assert outcome.out.startswith(f"every rewrite is {what}")
    assert "place-reductions" in outcome.out


def test_reduce_leaves_the_guilty_site(run, layers, tmp_path, monkeypatch):
    use(Wrong, monkeypatch)
    small = tmp_path / "small.spmd"
    outcome = run("reduce", layers, "-o", small)
    assert outcome.code == 0
    first, second, *sites = outcome.out.splitlines()
    assert first == "place-reductions: NOT_EQUIVALENT"
    assert second.startswith("pass place-reductions (5): NOT_EQUIVALENT")
    assert sites == [
        f"  at %{name}: all_reduce moved below aten.add.Tensor" for name in ("v10", "v12")
    ]
    assert run("bisect", small).code == 1


def test_reduce_to_what_a_pass_raises_on(run, layers, tmp_path, monkeypatch):
    use(Raising, monkeypatch)
    small = tmp_path / "small.spmd"
    outcome = run("reduce", layers, "-o", small)
    assert outcome.out == "AssertionError in pass place-reductions\na product\n"
    assert len(parse_graph(small.read_text()).graph.nodes) < 9


def test_reduce_by_a_command(run, layers, tmp_path):
    small, script = tmp_path / "small.spmd", tmp_path / "fails.py"
    script.write_text(
        "import sys; 'aten.mul' in open(sys.argv[1]).read() and sys.exit(\"a product\")"
    )
    outcome = run("reduce", layers, "-o", small, "--command", f"{sys.executable} {script} {{}}")
    assert (outcome.code, outcome.out) == (0, "exit code 1\na product\n")
    assert "3 nodes of 29" in outcome.err
    assert "aten.mul" in small.read_text()
    assert "all_reduce" not in small.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "nothing fails on this graph"),
        (("--command", "true"), "true ends with 0"),
        (("--command", "no-such-command-here"), "the command cannot be run"),
    ],
)
def test_what_cannot_be_reduced(run, layers, tmp_path, options, message):
    outcome = run("reduce", layers, "-o", tmp_path / "small.spmd", *options)
    assert outcome.code == 3
    assert message in outcome.err
    assert not (tmp_path / "small.spmd").exists()
