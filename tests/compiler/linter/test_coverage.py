"""What lint could look at: placements known of inputs and of products, along every axis."""

import pytest

from compiler.ir.text import parse_graph
from compiler.linter import Coverage, LintFacts, coverage
from tests.support.graphs import function

GRAPH = """
mesh <{mesh}>
func @main(%0 "x": f32[4, 6] {x}, %1 "w": f32[6, 8] {w}) {{
  %2: f32[4, 8] = aten.mm(%0, %1)
  %3: f32[4, 8] = comm.all_reduce(%2) {{axis = tp, op = sum}}
  %4: f32[8, 4] = aten.t(%3)
  %5: f32[8, 8] = aten.mm(%4, %3)
  return (%5,)
}}
"""


@pytest.mark.parametrize(
    ("mesh", "x", "w", "expected", "percent"),
    [
        ("tp = 2", "{tp: S(1)}", "{tp: S(0)}", Coverage(2, (), 2, ()), 100),
        # Beside rows that are cut, a weight counts as cut: it has to be.
        ("tp = 2", "{tp: S(1)}", "{tp: V}", Coverage(2, ("w",), 2, ()), 75),
        # What is reduced is known again, whatever it was.
        ("tp = 2", "{tp: V}", "{tp: V}", Coverage(2, ("x", "w"), 2, ("%2",)), 25),
        ("tp = 1", "{tp: V}", "{tp: V}", Coverage(2, (), 2, ()), 100),
        # Known along one axis is not enough.
        (
            "dp = 2, tp = 2",
            "{dp: V, tp: S(1)}",
            "{dp: R, tp: S(0)}",
            Coverage(2, ("x",), 2, ("%2", "%5")),
            25,
        ),
    ],
)
def test_coverage(mesh: str, x: str, w: str, expected: Coverage, percent: int) -> None:
    result = coverage(LintFacts(parse_graph(GRAPH.format(mesh=mesh, x=x, w=w))))
    assert (result, result.percent) == (expected, percent)


def test_a_graph_without_inputs_is_covered() -> None:
    text = "mesh <tp = 2>\nfunc @main() {\n  %0: f32[2] = aten.ones([2])\n  return (%0,)\n}\n"
    assert coverage(LintFacts(parse_graph(text))).percent == 100


@pytest.mark.parametrize(
    ("call", "names"),
    [
        ("f64[4, 8] = aten._softmax(%0, 1, false)", ("aten._softmax in %1",)),
        ("f64[4, 8] = aten.rms_norm(%0, [8])", ("aten.rms_norm in %1",)),
        ("f64[4, 8] = aten._softmax(%0, 0, false)", ()),
        ("f64[4] = aten.amax(%0, [1])", ()),  # a maximum that is known as such
    ],
)
def test_what_sees_a_block_of_what_it_needs_whole_is_named(
    call: str, names: tuple[str, ...]
) -> None:
    graph = function('%0 "x": f64[4, 8] {tp: S(1)}', f"%1: {call}", "return %1")
    assert coverage(LintFacts(graph)).own_parts == names
