"""The grammar and its reader fit, and lark is loaded only where a text is parsed."""

from __future__ import annotations

import subprocess
import sys

from compiler.ir.text import parse, parse_graph, print_graph
from compiler.ir.text.parse import _grammar
from compiler.ir.text.reader import Reader

TEXT = """\
mesh <tp = 2>
func @main(%0 "x": f32[4]) {
  %1: f32[4] = aten.relu(%0)
  return %1
}
"""


def test_every_rule_has_its_method() -> None:
    grammar, _ = _grammar()
    names = {rule.alias or rule.origin.name for rule in grammar.rules}
    rules = {str(name) for name in names if not name.startswith("_")}
    # Sums and items are read by their alternatives; the text is what ``returned`` keeps.
    inlined = {"text", "type", "sum", "product", "factor", "atom", "item"}
    assert rules - inlined
    assert {rule for rule in rules - inlined if not hasattr(Reader, rule)} == set()


def test_a_reader_does_not_outlive_its_text() -> None:
    _, rules = _grammar()
    assert print_graph(parse(TEXT).graph) == print_graph(parse_graph(TEXT))
    assert "reader" not in vars(rules)


def test_the_command_line_starts_without_lark() -> None:
    code = "import sys, compiler.cli, compiler.ir.text; print('lark' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


def test_names_of_axes_may_be_any_string() -> None:
    text = TEXT.replace("tp", r'"\"a\\b"').replace("f32[4])", r'f32[4] {"\"a\\b": S(0)})')
    graph = parse_graph(text)
    assert list(graph.mesh.axes) == ['"a\\b']
    assert print_graph(graph) == text
