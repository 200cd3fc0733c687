"""Copies of graphs: what stands for what, and layouts that follow from the operands."""

from __future__ import annotations

import torch

from compiler.check import Verdict, check
from compiler.ir.graph import SpmdGraph
from compiler.ir.graph_copy import GraphCopy
from compiler.ir.mesh import Mesh
from compiler.ir.text import print_graph
from tests.support.graphs import Builder, aten
from tests.support.random_graphs import seeded


def test_copies_are_the_same_graph_on_nodes_of_their_own() -> None:
    for seed in range(30):
        graph, copy = seeded(seed), GraphCopy()
        copy.add_all(graph.graph.nodes)
        assert {copy.values[node]: node for node in graph.graph.nodes} == copy.origins
        assert set(copy.target.nodes).isdisjoint(graph.graph.nodes)
        target = graph.with_graph(copy.target, copy.origins)
        assert print_graph(target) == print_graph(graph)
        assert check(graph, target).verdict is Verdict.IDENTICAL


def transposed() -> SpmdGraph:
    build = Builder(Mesh({"tp": 2}))
    x = build.call(aten.permute.default, build.input("x", 8, 4), [1, 0])
    y = build.call(aten.clone.default, x, memory_format=torch.contiguous_format)
    return build.finish(build.call(aten.view.default, build.call(aten.neg.default, y), [32]))


def test_a_copy_on_operands_of_another_layout_has_the_layout_that_follows() -> None:
    graph, copy = transposed(), GraphCopy()
    for node in graph.graph.nodes:
        if node.target is aten.clone.default:
            copy.values[node] = copy.values[node.args[0]]
        else:
            copy.add_recomputed(node, copy.values.__getitem__)
    target = graph.with_graph(copy.target, copy.origins)
    ops = {str(node.target): node for node in target.graph.nodes}
    assert ops["aten.neg.default"].meta["val"].stride() == (1, 4)
    assert "aten.reshape.default" in ops  # which a view on these strides is not
    assert {str(node.target) for node in copy.origins} == {"x", "aten.permute.default", "output"}
    assert check(graph, target).verdict is Verdict.EQUIVALENT
