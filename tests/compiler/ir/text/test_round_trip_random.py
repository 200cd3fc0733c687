"""The text of random graphs: it is read back, and computes the same."""

from __future__ import annotations

import operator
from typing import Any

import hypothesis
import hypothesis.strategies as st
import torch
from torch import fx

from compiler.ir import access, collectives
from compiler.ir.graph import SpmdGraph, spmd_graph
from compiler.ir.text import parse_graph, print_graph
from tests.compiler.ir.text.simulated import same_results
from tests.support.seeds import share

aten, c10d = torch.ops.aten, torch.ops._c10d_functional

START = """\
mesh <dp = 2, tp = 4>
group "0" = <tp>
sym s0 in [2, 4096]
func @main(%0 "x": f32[s0, 8] {dp: S(0), tp: P}, %1 "y": f32[4, 8] {dp: R, tp: R}) {
  %2: f32[8, 8] {dp: R, tp: S(1)} = attr "w"
  return none
}
"""


def two(target: Any, **kwargs: Any) -> Any:
    return lambda graph, x, y, _: graph.call_function(target, (x, y), kwargs)


def one(target: Any, *args: Any, **kwargs: Any) -> Any:
    return lambda graph, x, y, _: graph.call_function(target, (x, *args), kwargs)


def collective(target: Any, *args: Any) -> Any:
    def build(graph: fx.Graph, x: fx.Node, y: fx.Node, weight: fx.Node) -> fx.Node:
        return graph.call_function(
            collectives.WAIT, (graph.call_function(target, (x, *args, "tp")),)
        )

    return build


def top(graph: fx.Graph, x: fx.Node, y: fx.Node, weight: fx.Node) -> fx.Node:
    found = graph.call_function(aten.topk.default, (x, 8), {"sorted": True})
    return graph.call_function(operator.getitem, (found, 0))


def widened(graph: fx.Graph, x: fx.Node, y: fx.Node, weight: fx.Node) -> fx.Node:
    rows = graph.call_function(aten.sym_size.int, (x, 0))
    more = graph.call_function(operator.add, (rows, 3))
    filled = graph.call_function(aten.full.default, ([more, 8], -0.5), {"dtype": torch.float32})
    return graph.call_function(aten.cat.default, ([x, filled],))


STEPS = [
    two(aten.add.Tensor, alpha=2),
    two(aten.mul.Tensor),
    one(aten.relu.default),
    one(aten.add.Scalar, 1e-06),
    one(aten.clamp.default, None, 0.25),
    one(aten.slice.Tensor, 1, 0, 8),
    one(aten._softmax.default, -1, False),
    one(aten.mul.Tensor, access.RankInt(3, (3, 1, 4, 1, 5, 9, 2, 6))),
    lambda graph, x, y, w: graph.call_function(aten.mm.default, (x, w)),
    lambda graph, x, y, w: graph.call_function(aten.cat.default, ([x, y],)),
    collective(c10d.all_reduce.default, "sum"),
    collective(c10d.all_gather_into_tensor.default, 4),
    collective(c10d.reduce_scatter_tensor.default, "max", 4),
    top,
    widened,
]


@st.composite
def graphs(draw: st.DrawFn) -> SpmdGraph:
    """A straight line of random ops on values of 8 columns."""
    spmd = parse_graph(START)
    graph = spmd.graph
    x, y = access.node_of(graph, "placeholder")
    (weight,) = access.node_of(graph, "get_attr")
    mode = access.value(x).fake_mode
    values, known = [x, y], set(graph.nodes)
    graph.erase_node(access.output(graph))
    for step in draw(st.lists(st.sampled_from(STEPS), max_size=8)):
        left, right = draw(st.sampled_from(values)), draw(st.sampled_from(values))
        if access.shape(left) != access.shape(right):
            right = left
        made = step(graph, left, right, weight)
        for node in graph.nodes:
            if node not in known:
                args, kwargs = fx.node.map_arg(access.call(node), access.value)
                with mode, mode.shape_env.suppress_guards():
                    node.meta["val"] = node.target(*args, **kwargs)
                known.add(node)
        values.append(made)
    returned = draw(st.lists(st.sampled_from(values), max_size=3))
    graph.output(draw(st.sampled_from([tuple, list]))(returned))
    module = fx.GraphModule({"w": torch.rand(8, 8)}, graph)
    held = {n: dict(zip(spmd.mesh.axes, p, strict=True)) for n, p in spmd.inputs.items()}
    return spmd_graph(module, spmd.mesh, held)


@hypothesis.settings(max_examples=share(60), deadline=None, print_blob=True)
@hypothesis.given(graphs(), st.integers(1, 6))
def test_random_graphs(graph: SpmdGraph, rows: int) -> None:
    text = print_graph(graph)
    parsed = parse_graph(text)
    assert print_graph(parsed) == text
    assert parsed.inputs == graph.inputs
    same_results(graph, parsed, torch.rand(4 * rows, 8), torch.rand(4, 8))
