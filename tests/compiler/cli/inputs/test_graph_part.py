"""Layers of a model as a graph of their own."""

import json

from compiler.ir.text import parse_graph


def test_layers_are_a_graph_that_can_be_used(run, factories, tmp_path):
    part = tmp_path / "part.spmd"
    model = (f"{factories}:layers", "--tp", 4)
    assert run("dump", *model, "--before", "--layers", "1", "-o", part).code == 0
    graph = parse_graph(part.read_text())
    assert part.read_text().count("comm.all_reduce(") == 2
    assert "{tp: R}" in part.read_text().split(") {")[0]  # what layer 0 gives is the same on all
    assert len(graph.module.graph.nodes) > 4
    planned = json.loads(run("plan", part, "--format", "json").out)
    assert planned["plans"][0]["sections"][0]["after"]["counts"] == {"all_reduce": 1}


def test_unknown_layers(run, factories, two_sums):
    found = run("dump", f"{factories}:layers", "--tp", 2, "--layers", "2-9")
    assert found.code == 3
    assert "no such layers\n  where: --layers 2-9\n  found: layers 0 to 1" in found.err
    assert "commplan capture keeps that" in run("dump", two_sums, "--layers", "0").err
