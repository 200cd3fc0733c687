"""``commplan plan``."""

import json

import pytest


def test_table_of_a_graph_file(run, two_sums):
    found = run("plan", two_sums, "--tokens", "64,1")
    assert found.code == 0
    assert "Plan for 1, 64 tokens  5 → 4 values" in found.out
    total = next(line for line in found.out.splitlines() if "total" in line)
    assert " ".join(total.split()) == "total 2 → 1 4.0 → 2.0 KiB"
    assert "EQUIVALENT" in found.out
    assert "rounding: 1 x all_reduce over tp takes aten.add.Tensor of 2 operands" in found.out
    assert "2   all_reduce moved below aten.add.Tensor" in found.out
    assert [line.split(":")[0] for line in found.err.splitlines()] == [
        f"read {two_sums}",
        "plan",
        "optimize for 1 token",
        "optimize for 64 tokens",
        "check",
    ]


def test_json_of_a_captured_model_by_layer(run, factories):
    found = run("plan", f"{factories}:layers", "--tp", 4, "--tokens", "3", "--format", "json")
    held = json.loads(found.out)
    assert found.code == 0
    assert (held["model"], held["world_size"]) == (f"{factories}:layers", 4)
    (plan,) = held["plans"]
    (row,) = plan["sections"]
    assert (row["section"], row["layers"]) == ("dense layers", [0, 1])
    assert row["before"] == {"counts": {"all_reduce": 4}, "payload_bytes": {"3": 4 * 96}}
    assert row["after"] == {"counts": {"all_reduce": 2}, "payload_bytes": {"3": 2 * 96}}
    assert plan["report"]["verdict"] == "EQUIVALENT"
    assert [r["count"] for r in plan["report"]["roundings"]] == [2]
    assert {r["kind"]: r["count"] for r in plan["remarks"]} == {"passed": 4}
    (made,) = plan["plans"]
    assert (made["tokens"], made["policy"], made["stages"][0]["before"]) == (3, "cost", 4)
    assert {"capture", "plan", "rewrite", "check"} <= held["seconds"].keys()


def test_table_of_a_captured_model_names_layers_once(run, factories):
    found = run("plan", f"{factories}:layers", "--tp", 2, "--tokens", "1", "--set", "sums=3")
    assert found.code == 0
    assert "dense layers 0-1, each        3 → 1" in found.out
    assert "all 2                       6 → 2" in found.out
    assert "layers.{0-1}" in found.out


def test_world_of_one_rank(run, factories):
    found = run("plan", f"{factories}:one_layer", "--tp", 1)
    assert found.code == 0
    assert "world size 1" in found.out


@pytest.mark.parametrize(("shown", "rows"), [("passed", {"passed"}), ("missed", set())])
def test_remarks_of_one_kind(run, two_sums, shown, rows):
    found = run("plan", two_sums, "--format", "json", "--remarks", shown)
    (plan,) = json.loads(found.out)["plans"]
    assert {remark["kind"] for remark in plan["remarks"]} == rows


TWICE_A_BIAS = """
mesh <tp = 4>
func @main(%0 "x": f32[4, 8] {tp: V}, %1 "y": f32[4, 8] {tp: V}, %2 "b": f32[4, 8]) {
  %3: f32[4, 8] = comm.all_reduce(%0) {axis = tp, op = sum}
  %4: f32[4, 8] = aten.add.Tensor(%3, %2)
  %5: f32[4, 8] = aten.silu(%4)
  %6: f32[4, 8] = comm.all_reduce(%1) {axis = tp, op = sum}
  %7: f32[4, 8] = aten.exp(%2)
  %8: f32[4, 8] = aten.add.Tensor(%6, %7)
  %9: f32[4, 8] = aten.silu(%8)
  return %5, %9
}
"""


def test_remarks_that_differ_in_names_are_one_row_with_the_names_of_the_first(run, tmp_path):
    path = tmp_path / "twice.spmd"
    path.write_text(TWICE_A_BIAS)
    why = "all_reduce kept: aten.add.Tensor adds {}, which is not a partial sum"
    words = " ".join(run("plan", path).out.split())
    assert f"2 {why.format('%b')}; 1 more like it" in words
    (plan,) = json.loads(run("plan", path, "--format", "json").out)["plans"]
    assert {(r["reason"], r["count"]) for r in plan["remarks"]} == {
        (why.format("%b"), 1), (why.format("%v7"), 1)
    }  # fmt: skip


def test_policy_off_moves_nothing_and_says_so(run, two_sums):
    found = run("plan", two_sums, "--policy", "off")
    assert found.code == 0
    assert "policy 'off': reductions stay where they are" in found.out
    assert "IDENTICAL" in found.out


def test_timing_goes_to_standard_error(run, two_sums):
    found = run("plan", two_sums, "--timing")
    assert "place-reductions" in found.err
    assert "place-reductions" not in found.out


def test_static_sizes_have_one_payload(run, tmp_path, two_sums):
    static = tmp_path / "static.spmd"
    text = two_sums.read_text().replace("s0,", "4,").replace("sym s0 in [2, 4096]\n", "")
    static.write_text(text)
    (plan,) = json.loads(run("plan", static, "--format", "json").out)["plans"]
    assert plan["tokens"] == []
    assert plan["sections"][0]["after"]["payload_bytes"] == {"captured": 128}
    assert "Plan for the sizes of the graph" in run("plan", static).out


def test_unproved_has_an_exit_code_of_its_own(run, two_sums, monkeypatch):
    from compiler.check import Report, Verdict

    for verdict, code in ((Verdict.UNPROVED, 2), (Verdict.NOT_EQUIVALENT, 1)):
        report = Report(verdict, "output 0 is not shown equal")
        monkeypatch.setattr(
            "compiler.cli.render.plan_results.check", lambda *_, report=report: report
        )
        found = run("plan", two_sums)
        assert found.code == code
        assert f"{verdict}  output 0 is not shown equal" in found.out
