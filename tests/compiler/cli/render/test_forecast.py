"""Plans by the time they take on a machine."""

import json

import pytest


def test_plans_by_time_show_ranges_and_what_alternatives_take(run, factories, rounded):
    model = f"{factories}:layers"
    found = run("plan", model, "--tp", 4, "--machine", rounded, "--tokens", "2,4096")
    assert found.code == 0, found.err
    assert "machine round numbers, graph" in found.out
    lines = found.out.splitlines()
    second = next(i for i, line in enumerate(lines) if "merged" in line)
    assert lines[second - 1].split() == ["as", "lower"]
    assert lines[second].split() == [
        "tokens", "collectives", "written", "merged", "planned", "bound", "saved",
    ]  # fmt: skip
    assert "divisible by 4" in found.out
    assert "predicted for 2 tokens, us: collectives, and below them kernels" in found.out
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
    rows = [line.split() for line in found.out.splitlines() if "%" in line]
    assert [row[:-5] for row in rows] == [
        ["round", "4", "1"], ["64"], ["h100x8", "4", "1"], ["64"], ["a100x8", "2", "1"], ["64"]
    ]  # fmt: skip
    held = json.loads(run("plan", model, *given, "--format", "json").out)["machines"]
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
