"""``commplan plan``."""

import json

import pytest

from tests.machines import written


def test_table_of_a_graph_file(run, two_sums):
    found = run("plan", two_sums, "--tokens", "64,1")
    assert found.code == 0
    assert "Plan for 1, 64 tokens  5 → 4 values" in found.out
    total = next(line for line in found.out.splitlines() if "total" in line)
    assert " ".join(total.split()) == "total 2 → 1 64 → 32 B 4.0 → 2.0 KiB"
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
    assert f"2   {why.format('%b')}; 1 more like it" in run("plan", path).out
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
        monkeypatch.setattr("compiler.cli.commands.plan.check", lambda *_, report=report: report)
        found = run("plan", two_sums)
        assert found.code == code
        assert f"{verdict}  output 0 is not shown equal" in found.out


@pytest.fixture
def rounded(tmp_path):
    return written(tmp_path, 4, memory=10)


def test_plans_by_time_show_ranges_and_what_alternatives_take(run, factories, rounded):
    model = f"{factories}:layers"
    found = run("plan", model, "--tp", 4, "--machine", rounded, "--tokens", "2,4096")
    assert found.code == 0, found.err
    assert "machine round numbers, graph" in found.out
    heading = next(line for line in found.out.splitlines() if "as written, ms" in line)
    assert [x.strip() for x in heading.split("  ") if x.strip()] == [
        "tokens", "collectives of the plan", "as written, ms", "merged, ms", "planned, ms",
        "lower bound, ms", "saved",
    ]  # fmt: skip
    assert "divisible by 4" in found.out
    assert "predicted for 2 tokens, us: collectives + kernels" in found.out
    assert "predicted for 4096 tokens" in found.out
    assert "dense layers, each of 2" in found.out
    assert found.out.count("EQUIVALENT") == found.out.count("Plan for")


def test_predictions_as_json_add_up(run, factories, rounded):
    model = f"{factories}:layers"
    found = run(
        "plan", model, "--tp", 4, "--machine", rounded, "--tokens", "2,4096", "--format", "json"
    )
    held = json.loads(found.out)
    assert all(r["predicted"]["planned"] <= r["predicted"]["merged"] for r in held["ranges"])
    assert held["ranges"][0]["first"] == 4
    assert held["ranges"][0]["divisible"]
    for plan in held["plans"]:
        for one in plan["predicted"]:
            total = {"merged": 0, "planned": 0, "lower bound": 0}
            for row in one["sections"].values():
                for name in total:
                    total[name] += sum(row.get(name, {}).values())
            assert total["lower bound"] <= total["planned"] <= total["merged"]


def test_machines_and_world_sizes_side_by_side(run, factories, rounded):
    model = f"{factories}:layers"
    given = ("--tp", 4, "--machine", rounded, "--tokens", "1,64", "--compare", "h100x8,a100x8:2")
    found = run("plan", model, *given)
    assert found.code == 0, found.err
    rows = [line.split()[:2] for line in found.out.splitlines() if "→" in line][1:]
    assert rows == [["round", "4"], ["h100x8", "4"], ["a100x8", "2"]]
    held = json.loads(run("plan", model, *given, "--format", "json").out)
    assert [(row["machine"], row["ranks"]) for row in held] == [
        ("round", 4), ("h100x8", 4), ("a100x8", 2)
    ]  # fmt: skip
    assert [at["tokens"] for at in held[0]["predicted"]] == [1, 64]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_plot(run, factories, rounded, tmp_path, suffix):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"times.{suffix}"
    found = run("plan", f"{factories}:layers", "--tp", 4, "--machine", rounded, "--plot", path)
    assert found.code == 0, found.err
    start = path.read_bytes()[:200]
    assert start.startswith(b"\x89PNG") if suffix == "png" else b"<?xml" in start


def test_errors_of_planning_by_time(run, factories, rounded, two_sums, tmp_path):
    model = f"{factories}:layers"
    cases = [
        (("--machine", "abacus"), "no machine 'abacus'"),
        (("--compare", "h100x8"), "--compare needs a machine"),
        (("--plot", tmp_path / "x.png"), "--plot needs a machine"),
        (("--machine", rounded, "--compare", "h100x8:none"), "cannot read --compare"),
        (("--machine", rounded, "--plot", tmp_path / "x.pdf"), "written as .png or .svg"),
        (("--machine", rounded, "--plot", tmp_path / "no" / "x.png"), "folder of the plot"),
        (("--machine", rounded, "--tp", 2), "2 ranks"),
    ]
    for given, text in cases:
        found = run("plan", model, *given)
        assert found.code == 3, given
        assert text in found.err, found.err
        assert found.out == ""
