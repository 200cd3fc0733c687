"""``commplan dump``."""

import json
import re

import pytest

from compiler.ir.text import parse_graph
from passes import LOWERING


def all_reduces(text: str) -> int:
    return text.count("comm.all_reduce(")


@pytest.mark.parametrize(("side", "count"), [("--before", 2), ("--after", 1), ("--both", 3)])
def test_text_parses(run, two_sums, side, count):
    found = run("dump", two_sums, side)
    assert found.code == 0
    assert all_reduces(found.out) == count
    for graph in re.split(r"(?m)^// ----- .*$", found.out)[1:]:
        parse_graph(graph)


MLP = """\
mesh <dp = 2, tp = 4>
func @main(
  %0 "x": f32[4, 8] {dp: S(0), tp: R},
  %1 "up": f32[8, 6] {dp: R, tp: S(1)},
  %2 "down": f32[6, 8] {dp: R, tp: S(0)}
) {
  %3: f32[4, 6] {dp: S(0), tp: S(1)} = aten.mm(%0, %1)
  %4: f32[4, 6] {dp: S(0), tp: S(1)} = aten.silu(%3)
  %5: f32[4, 8] {dp: S(0), tp: P} = aten.mm(%4, %2)
  %6: f32[4, 8] {dp: S(0), tp: V} = aten.silu(%5)
  %7: f32[4, 8] {dp: S(0), tp: R} = comm.all_reduce(%5) {axis = tp, op = sum}
  return %6, %7
}
"""


@pytest.fixture
def mlp(tmp_path):
    """A graph file that states no placement of computed values."""
    path = tmp_path / "mlp.spmd"
    path.write_text(re.sub(r"(?m)^(  %[3-7].*?) {dp: .*?}", r"\1", MLP))
    assert path.read_text().count("{dp: ") == 3
    return path


def test_every_value_has_its_placement(run, mlp):
    found = run("dump", mlp, "--before").out
    assert found == f"// ----- before: 8 values, 1 collectives -----\n{MLP}"


def test_placements_of_both_sides(run, two_sums):
    assert (
        run("dump", two_sums, "--both").out
        == """\
// ----- before: 5 values, 2 collectives -----
mesh <tp = 4>
sym s0 in [2, 4096]
func @main(%0 "x": f32[s0, 8] {tp: V}, %1 "y": f32[s0, 8] {tp: V}) {
  %2: f32[s0, 8] {tp: R} = comm.all_reduce(%0) {axis = tp, op = sum}
  %3: f32[s0, 8] {tp: R} = comm.all_reduce(%1) {axis = tp, op = sum}
  %4: f32[s0, 8] {tp: R} = aten.add.Tensor(%2, %3)
  return (%4,)
}

// ----- after: 4 values, 1 collectives -----
mesh <tp = 4>
sym s0 in [2, 4096]
func @main(%0 "x": f32[s0, 8] {tp: V}, %1 "y": f32[s0, 8] {tp: V}) {
  %2: f32[s0, 8] {tp: V} = aten.add.Tensor(%0, %1)
  %3: f32[s0, 8] {tp: R} = comm.all_reduce(%2) {axis = tp, op = sum}
  return (%3,)
}
"""
    )


def test_placements_in_other_forms(run, mlp):
    values = json.loads(run("dump", mlp, "--before", "--format", "json").out)["values"]
    assert values[5]["placement"] == {"dp": "S(0)", "tp": "P"}
    held = "f32[4, 8] {dp: S(0), tp: P}"
    dot = run("dump", mlp, "--before", "--format", "dot").out
    assert f'  5 [label="%5: {held}\\naten.mm(%4, %2)"];\n' in dot


def test_after_is_the_default_and_a_file_takes_it(run, two_sums, tmp_path):
    shown, target = run("dump", two_sums), tmp_path / "after.spmd"
    written = run("dump", two_sums, "-o", target)
    assert (written.code, written.out) == (0, "")
    assert target.read_text() == shown.out
    assert all_reduces(shown.out) == 1


def test_json_and_dot(run, two_sums):
    both = json.loads(run("dump", two_sums, "--both", "--format", "json").out)
    assert [len(both[side]["values"]) for side in ("before", "after")] == [5, 4]
    assert len(json.loads(run("dump", two_sums, "--format", "json").out)["values"]) == 4
    assert run("dump", two_sums, "--both", "--format", "dot").out.count("digraph") == 2


def test_print_after_goes_to_standard_error(run, two_sums):
    every = run("dump", two_sums, "--print-after", "all")
    assert every.out == run("dump", two_sums).out
    headers = re.findall(r"// ----- IR after (\S+) \((\d+)\): (.*) -----", every.err)
    assert [name for name, *_ in headers] == [
        "canonicalize",
        "canonicalize-slices",
        "eliminate-dead-code",
        "regroup-sums",
        "place-reductions",
        "eliminate-dead-code",
        *(listed.name for listed in LOWERING),
    ]
    assert headers[4] == ("place-reductions", "5", "2 rewrites, 0 refused")
    assert run("dump", two_sums, "--print-after", "changed").err.count("IR after") == 1
    assert run("dump", two_sums, "--print-after", "place-reductions").err.count("IR after") == 1


def test_dump_dir(run, two_sums, tmp_path):
    folder = tmp_path / "deep" / "passes"
    assert run("dump", two_sums, "--before", "--dump-dir", folder).code == 0
    names = sorted(path.name for path in folder.iterdir())
    assert names[4] == "05-place-reductions.spmd"
    assert all_reduces((folder / names[4]).read_text()) == 1
    assert all_reduces((folder / names[3]).read_text()) == 2


def test_bisection(run, two_sums):
    assert all_reduces(run("dump", two_sums, "--opt-bisect-limit", 4).out) == 2
    assert all_reduces(run("dump", two_sums, "--opt-bisect-limit", 5).out) == 1


def test_check_each_finds_the_pass_at_fault(run, two_sums, monkeypatch):
    from compiler.check import Report, Verdict

    wrong = Report(Verdict.NOT_EQUIVALENT, "output 0 differs")
    monkeypatch.setattr("compiler.pipeline.check", lambda *_: wrong)
    found = run("dump", two_sums, "--check-each")
    assert "pass place-reductions changed the function of the graph" in found.err
    assert (found.code, found.out) == (1, "")


def test_verify_each_finds_a_change_that_is_not_reported(run, two_sums, monkeypatch):
    from dataclasses import replace

    from passes import PlaceReductions

    apply = PlaceReductions.apply

    def silent(self, graph):
        return replace(apply(self, graph), changed=False)

    assert run("dump", two_sums, "--verify-each").code == 0
    monkeypatch.setattr(PlaceReductions, "apply", silent)
    found = run("dump", two_sums, "--verify-each")
    assert "pass place-reductions reports no change and returned another graph" in found.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--before", "--after"], "more than one of --before, --after and --both"),
        (["--layers", "4-3"], "cannot read --layers"),
        (["--layers", "all"], "cannot read --layers"),
        (["--print-after", "merge"], "--print-after names no pass"),
        (["--dump-dir", "two_sums.spmd"], "cannot make the folder"),
        (["-o", "absent/after.spmd"], "cannot write the file"),
        (["--opt-bisect-limit", "-1"], "--opt-bisect-limit"),
        (["--format", "png"], "--format"),
    ],
)
def test_bad_options(run, two_sums, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    found = run("dump", two_sums, *options)
    assert (found.code, found.out) == (3, "")
    assert message in found.err
    assert "Traceback" not in found.err
