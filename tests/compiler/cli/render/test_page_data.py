"""What the report says, as JSON."""

import json

import pytest


@pytest.fixture
def report(run):
    def read(*arguments):
        outcome = run("report", *arguments, "--format", "json")
        assert outcome.code == 0, outcome.err
        return json.loads(outcome.out)

    return read


def taken(values, groups, at):
    """Picoseconds of all layers, alike ones each."""
    return sum(
        max(1, len(group["layers"])) * sum(v["ps"][at] for v in side if "ps" in v)
        for group, side in zip(groups, values, strict=True)
    )


def test_alike_layers_are_one_and_times_are_the_predicted_totals(report, factories, rounded):
    model = f"{factories}:in_sequence"
    data = report(model, "--tp", 4, "--machine", rounded, "--tokens", "2,4096")
    groups = data["groups"]
    assert [g["title"] for g in groups] == ["layer 0", "layers 1-3", "layer 4"]
    assert (groups[1]["layers"], groups[1]["kind"]) == ([1, 2, 3], "dense")
    for at, point in enumerate(data["points"]):
        assert taken([g["before"] for g in groups], groups, at) == point["as_written"]
        plan = data["plans"][point["plan"]]
        sides = [g["plans"][point["plan"]]["values"] for g in groups]
        assert taken(sides, groups, plan["points"].index(at)) == point["planned"]
    assert {row["plan"] for row in data["ranges"]} <= set(range(len(data["plans"])))
    assert len(data["curve"]["tokens"]) == len(data["curve"]["planned"]) > 20


def test_a_collective_with_all_that_is_known_of_it(report, factories):
    data = report(f"{factories}:layers", "--tp", 4, "--tokens", "4")
    layer = data["groups"][0]
    first = next(value for value in layer["before"] if "call" in value)
    file, line = first["at"]
    assert data["files"][file]["name"] == "cli_factories.py"
    assert "funcol.all_reduce(part(x)" in data["files"][file]["lines"][str(line)]
    operand, kind = first["call"].pop("operand"), first["call"].pop("operand_type")
    assert first["call"] == {
        "kind": "all_reduce", "op": "sum", "axis": "tp", "bytes": [4 * 8 * 4], "kernel": "",
    }  # fmt: skip
    assert operand in first["op"]
    assert "{tp: V}" in kind
    assert first["type"].endswith("{tp: R}")


def test_what_became_of_collectives_and_why(report, two_sums):
    (group,) = report(two_sums)["groups"]
    (plan,) = group["plans"]
    new = [value for value in plan["values"] if value.get("call", {}).get("state") == "new"]
    assert [value["call"]["kind"] for value in new] == ["all_reduce"]
    assert len(plan["fates"]) == 2
    for fate in plan["fates"].values():
        assert (fate["state"], fate["links"]) == ("gone", [new[0]["name"]])
        assert [why["reason"] for why in fate["why"]] == ["all_reduce moved below aten.add.Tensor"]


def test_a_collective_that_stays_says_why(report, two_sums):
    two_sums.write_text(two_sums.read_text().replace("return (%4,)", "return (%4, %2)"))
    (group,) = report(two_sums)["groups"]
    fates = list(group["plans"][0]["fates"].values())
    assert [fate["state"] for fate in fates] == ["kept", "kept"]
    reasons = [why["reason"] for why in fates[0]["why"]]
    assert reasons == ["all_reduce kept: the graph returns its result"]
    assert [v["call"]["why"] for v in group["plans"][0]["values"] if "call" in v] == [
        fate["why"] for fate in fates
    ]


def test_an_option_that_would_change_it_is_named(report, tmp_path):
    path = tmp_path / "widening.spmd"
    path.write_text(
        """
mesh <tp = 4>
func @main(%0 "x": bf16[4, 8] {tp: V}) {
  %1: bf16[4, 8] = comm.all_reduce(%0) {axis = tp, op = sum}
  %2: f32[4, 8] = aten._to_copy(%1, dtype = f32)
  return %2
}
"""
    )
    (group,) = report(path)["groups"]
    (why,) = group["plans"][0]["fates"]["%" + group["before"][0]["name"][1:]]["why"]
    assert "widen is off" in why["reason"]
    assert why["remedy"].startswith("--widen")


def test_the_story_of_the_passes(report, two_sums):
    (plan,) = report(two_sums)["plans"]
    story = {each["name"]: each for each in plan["passes"]}
    placed = story["place-reductions"]
    assert placed["what"].startswith("Place")
    assert (placed["changed"], placed["counts"]) == (True, {"all_reduce": 1})
    ((change),) = placed["changes"]
    assert change["where"] == "whole graph"
    assert len([line for line in change["gone"] if "comm.all_reduce" in line]) == 2
    assert len([line for line in change["came"] if "comm.all_reduce" in line]) == 1
    assert story["canonicalize"]["counts"] == {"all_reduce": 2}
