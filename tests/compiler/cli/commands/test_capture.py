"""``commplan capture``: what is said of a model is said of its saved graph."""

import json

from compiler.ir import access
from compiler.ir.text import parse_graph


def captured(run, factories, tmp_path):
    path = tmp_path / "layers.spmd"
    assert run("capture", f"{factories}:layers", "--tp", 2, "-o", path).code == 0
    return path


def test_a_saved_graph_is_planned_as_the_model_is(run, factories, tmp_path):
    path = captured(run, factories, tmp_path)
    live, saved = (
        json.loads(run("plan", *arguments, "--format=json").out)
        for arguments in ((f"{factories}:layers", "--tp", 2), (path,))
    )
    for key in ("mesh", "values"):
        assert saved[key] == live[key]
    for one, other in zip(saved["plans"], live["plans"], strict=True):
        for plan in (one, other):
            del plan["report"]["seconds"]
        for key in ("sections", "remarks", "report"):
            assert one[key] == other[key]
    assert {row["section"] for row in saved["plans"][0]["sections"]} == {"dense layers"}


def test_layers_of_a_saved_graph(run, factories, tmp_path):
    path = captured(run, factories, tmp_path)
    printed = run("dump", path, "--before", "--layers", 1).out
    assert printed == run("dump", f"{factories}:layers", "--tp", 2, "--before", "--layers", 1).out
    assert "layers.1" in printed
    assert "layers.0" not in printed


def test_lines_and_names_are_kept(run, factories, tmp_path):
    graph = parse_graph(captured(run, factories, tmp_path).read_text()).graph
    (relu, *_) = (n for n in graph.nodes if str(n.target) == "aten.relu.default")
    assert relu.name == "relu"
    assert access.source_line(relu).startswith("cli_factories.py:")
    assert any(n.name.startswith("all_reduce") for n in graph.nodes)


def test_a_captured_text_is_stable(run, factories, tmp_path):
    path = captured(run, factories, tmp_path)
    first, *text = path.read_text().splitlines()
    assert first == "// cli_factories:layers"
    assert run("capture", path).out.splitlines()[1:] == [x for x in text if x[:2] != "//"]
