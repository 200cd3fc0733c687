"""What a walk over values reaches."""

from compiler.analysis.traversal import reached
from tests.support.graphs import function

INPUTS = '%0 "x": f32[4] {tp: V}, %1 "y": f32[4] {tp: V}'
LINES = ("%2: f32[4] = aten.neg(%0)", "%3: f32[4] = aten.add.Tensor(%2, %0)",
         "%4: f32[4] = aten.neg(%1)", "return %3, %4")  # fmt: skip


def test_everything_that_follows_is_reached_once() -> None:
    x, y, negated, total, other, _ = function(INPUTS, *LINES).graph.nodes
    asked = []

    def operands(node):  # type: ignore[no-untyped-def]
        asked.append(node)
        return node.all_input_nodes

    assert [*reached([total], operands)] == [total, x, negated] == asked
    assert set(reached([total, other], lambda node: node.all_input_nodes)) == {
        x, y, negated, total, other
    }  # fmt: skip
    assert [*reached([total], lambda node: ())] == [total]
