"""Lists of collectives: what they hold, and what they do not depend on."""

import pytest

from compiler.errors import CommPlanError
from compiler.ir.text import parse_graph
from compiler.snapshot import Entry, Snapshot, exceeded

TEXT = """mesh <dp = 2, tp = 4>
sym {symbol} in [2, 64]
func @main(%0 "x": f32[{symbol}, 8], %1 "w": f32[8, 8] {{tp: V}}) {{
{more}  %2: f32[{symbol}, 8] = aten.mm(%0, %1)
  %3: f32[{symbol}, 8] = comm.all_reduce(%2) {{axis = tp, op = sum}}
  %4: f32[4*{symbol}, 8] = comm.all_gather(%3) {{axis = tp}}
  return %4
}}
"""
ENTRIES = (
    Entry("", "all_reduce", "sum", "tp", "f32[s0, 8]"),
    Entry("", "all_gather", "", "tp", "f32[s0, 8]"),
)


def snapshot(symbol="s0", more=""):
    return Snapshot.of(parse_graph(TEXT.format(symbol=symbol, more=more)))


def test_an_entry_for_each_collective_in_program_order():
    assert snapshot() == Snapshot({"dp": 2, "tp": 4}, ENTRIES)
    assert list(map(str, snapshot().collectives)) == [
        "all_reduce f32[s0, 8] over tp",
        "all_gather f32[s0, 8] over tp",
    ]


def test_other_symbols_and_other_nodes_make_no_difference():
    assert snapshot("s77", "  %9: f32[s77, 8] = aten.relu(%0)\n") == snapshot()


def test_json_and_back():
    text = snapshot().to_json()
    assert Snapshot.from_json(text) == snapshot()
    assert text.count("\n") == 8, "a line for each collective"


def test_lines_of_the_model_are_kept_and_not_compared():
    there = Entry("layers.0", "all_reduce", "max", "tp", "f32[4]", "model.py:3")
    again = Snapshot.from_json(Snapshot({"tp": 2}, (there,)).to_json()).collectives[0]
    assert again.line == "model.py:3"
    assert again == Entry("layers.0", "all_reduce", "max", "tp", "f32[4]", "model.py:9")
    assert str(again) == "all_reduce (max) f32[4] over tp"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[]", "TypeError"),
        ("{", "JSONDecodeError"),
        ("{}", "KeyError: 'schema'"),
        ('{"schema": "commplan.collectives/2"}', "schema 'commplan.collectives/2'"),
        ('{"schema": "commplan.collectives/1", "mesh": {}, "collectives": [{"a": 1}]}', "TypeErr"),
    ],
)
def test_other_texts_are_refused(text, found):
    with pytest.raises(CommPlanError, match="must be JSON of schema") as caught:
        Snapshot.from_json(text, "here.json")
    assert caught.value.where == "here.json"
    assert caught.value.found.startswith(found)


def test_budgets():
    assert exceeded(snapshot(), {"all_reduce": 1, "all_gather": 0}) == (
        "1 all_gathers, at most 0 allowed",
    )
    with pytest.raises(CommPlanError, match="must name kinds of collectives"):
        exceeded(snapshot(), {"allreduce": 1})
