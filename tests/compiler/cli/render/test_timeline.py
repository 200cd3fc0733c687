"""Timelines as traces."""

import json
from collections import defaultdict
from itertools import pairwise

import pytest


def test_slices_are_the_predicted_total_and_take_turns(run, factories, rounded, tmp_path):
    path = tmp_path / "trace.json"
    model = f"{factories}:layers"
    options = ("--tp", 4, "--machine", rounded, "--tokens", "2,4096", "--format", "json")
    outcome = run("plan", model, *options, "--trace", path)
    assert outcome.code == 0, outcome.err
    trace = json.loads(path.read_text())
    names = {
        e["pid"]: e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"
    }
    assert list(names.values()) == [
        "2 tokens, as written", "2 tokens, planned", "4096 tokens, as written",
        "4096 tokens, planned",
    ]  # fmt: skip
    tracks = {
        (e["pid"], e["tid"]): e["args"]["name"]
        for e in trace["traceEvents"]
        if e["name"] == "thread_name"
    }
    slices = defaultdict(list)
    for event in trace["traceEvents"]:
        if event["ph"] == "X":
            assert event["cat"] == tracks[event["pid"], event["tid"]]
            slices[names[event["pid"]], event["cat"] == "layers"].append(event)
    predicted = {
        (one["tokens"], heading): sum(
            sum(row[heading].values()) for row in one["sections"].values()
        )
        for plan in json.loads(outcome.out)["plans"]
        for one in plan["predicted"]
        for heading in ("as written", "planned")
    }
    for (tokens, heading), total_ps in predicted.items():
        turns = slices[f"{tokens} tokens, {heading}", False]
        assert sum(event["dur"] for event in turns) == pytest.approx(total_ps / 1e6)
        for one, after in pairwise(sorted(turns, key=lambda event: event["ts"])):
            assert one["ts"] + one["dur"] == pytest.approx(after["ts"])
        layers = slices[f"{tokens} tokens, {heading}", True]
        assert [e["name"] for e in layers if e["name"].startswith("layers.0")]
    calls = [e for e in slices["2 tokens, as written", False] if e["cat"] == "communication"]
    assert [event["name"] for event in calls] == ["all_reduce"] * 4
    assert calls[0]["args"]["line"].startswith("cli_factories.py:")
    assert calls[0]["args"]["bytes"] == 2 * 8 * 4


def test_a_trace_needs_a_machine_and_a_suffix(run, two_sums, rounded, tmp_path):
    without = run("plan", two_sums, "--trace", tmp_path / "t.json")
    assert (without.code, "--trace needs a machine" in without.err) == (3, True)
    named = run("plan", two_sums, "--machine", rounded, "--trace", tmp_path / "t.perfetto")
    assert (named.code, "a trace is written as .json" in named.err) == (3, True)
