from __future__ import annotations

import json

from compiler.ir.text import parse, parse_graph, to_dot, to_json

TEXT = """\
mesh <tp = 2>
group "0" = <tp>
sym s0 in [2, inf]
func @main(%0 "x": f32[s0, 4] {tp: P}) {
  %1: f32[4, 4] {tp: V} = attr "w"
  %2: f32[s0, 4] {tp: R} = comm.all_reduce(%0) {axis = tp, op = sum}
  %3: f32[s0, 4] = aten.mm(%2, %1)
  return %3, [%3, %2]
}
"""


def test_json() -> None:
    parsed = parse(TEXT)
    found = json.loads(to_json(parsed.graph, facts=parsed.facts))
    values = found.pop("values")
    assert found == {
        "schema": "commplan.graph/1",
        "mesh": {"tp": 2},
        "groups": {"tp": [[0, 1]], "0": [[0, 1]]},
        "symbols": {"s0": ["2", "inf"]},
        "outputs": [3, 3, 2],
    }
    assert [value["number"] for value in values] == [0, 1, 2, 3]
    assert values[0] == {
        "number": 0,
        "name": "x",
        "type": "f32[s0, 4]",
        "placement": {"tp": "P"},
        "operation": "input",
        "operands": [],
        "layer": "",
        "source": "",
    }
    assert values[2]["operation"] == "comm.all_reduce(%0) {axis = tp, op = sum}"
    assert values[2]["placement"] == {"tp": "R"}
    assert values[3]["placement"] is None
    assert values[3]["operands"] == [2, 1]


def test_dot() -> None:
    assert (
        to_dot(parse_graph(TEXT), name="model")
        == """\
digraph "model" {
  node [shape=box, fontname=monospace];
  0 [label="%0 \\"x\\": f32[s0, 4] {tp: P}", color=grey];
  1 [label="%1: f32[4, 4] {tp: V}\\nattr \\"w\\"", color=grey];
  2 [label="%2: f32[s0, 4]\\ncomm.all_reduce(%0) {axis = tp, op = sum}", color=red];
  0 -> 2;
  3 [label="%3: f32[s0, 4]\\naten.mm(%2, %1)"];
  2 -> 3;
  1 -> 3;
  return [label="return", shape=plaintext];
  3 -> return;
  2 -> return;
}
"""
    )
