"""docs/lint.md: every rule is there, and its example gives exactly the finding shown."""

import re
from pathlib import Path

import pytest

from compiler.ir.text import parse_graph
from compiler.linter import RULES, findings

PAGE = (Path(__file__).parents[3] / "docs" / "lint.md").read_text()
SECTIONS = {
    name: body
    for name, body in re.findall(r"^### ([\w-]+)\n(.*?)(?=^##)", PAGE, re.MULTILINE | re.DOTALL)
}
IN_NO_GRAPH = {"rank-dependent-program", "unknown-collective"}


def test_every_rule_has_a_section_and_no_other() -> None:
    assert list(SECTIONS) == list(RULES)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in IN_NO_GRAPH])
def test_example(rule: str) -> None:
    graph, shown = re.findall(r"^```\n(.*?)\n```$", SECTIONS[rule], re.MULTILINE | re.DOTALL)
    (found,) = findings(parse_graph(graph))
    assert (found.rule, str(found)) == (rule, shown)


def test_the_block_for_python() -> None:
    text = """
mesh <tp = 8>
func @main(%0 "x": f32[4, 8], %1 "up": f32[8, 2] {tp: S(1)}, %2 "down": f32[2, 8]) {
  %3: f32[4, 2] = aten.mm(%0, %1)
  %4: f32[4, 8] = aten.mm(%3, %2)
  %5: f32[4, 8] = comm.all_reduce(%4) {axis = tp, op = sum}
  return (%5,)
}
"""
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    exec(block, {"graph_module": parse_graph(text).module})


def test_the_title_says_what_the_rule_finds() -> None:
    for rule, what in RULES.items():
        text = " ".join(SECTIONS[rule].split())
        assert rule in IN_NO_GRAPH or text.startswith(f"{what[0].upper()}{what[1:]}.")
