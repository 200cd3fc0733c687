"""Coalesced collectives are read as separate ones, by everything that is given a graph."""

from __future__ import annotations

import operator
from collections import Counter

import pytest
from torch import fx, nn

from compiler.analysis.statistics import statistics
from compiler.check import Verdict, check
from compiler.ir.coalesced import SINGLE, separated
from compiler.ir.collectives import WAIT, Kind
from compiler.ir.graph import SpmdGraph, spmd_graph
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Varying
from compiler.linter import findings
from tests.support.graphs import Builder, aten, c10d

MESH = Mesh({"tp": 4})
CALLS = {
    Kind.ALL_REDUCE: (c10d.all_reduce_coalesced.default, ("sum", "tp")),
    Kind.ALL_GATHER: (c10d.all_gather_into_tensor_coalesced.default, (4, "tp")),
    Kind.REDUCE_SCATTER: (c10d.reduce_scatter_tensor_coalesced.default, ("sum", 4, "tp")),
}


def module(kind: Kind) -> fx.GraphModule:
    """Two values through one collective, and added up."""
    build = Builder(MESH)
    inputs = [build.input(name, 4, 8) for name in "xy"]
    op, rest = CALLS[kind]
    several = build.graph.call_function(op, (inputs, *rest))
    rows = {Kind.ALL_GATHER: 16, Kind.REDUCE_SCATTER: 1}.get(kind, 4)
    several.meta["val"] = [n.meta["val"].new_empty(rows, 8) for n in inputs]
    results = [build.call(WAIT, build.call(operator.getitem, several, i)) for i in (0, 1)]
    build.graph.output((build.call(aten.add.Tensor, *results),))
    return fx.GraphModule(nn.Module(), build.graph)


def separate(kind: Kind) -> SpmdGraph:
    """The same by two collectives."""
    build = Builder(MESH)
    inputs = [build.input(name, 4, 8, varies=("tp",)) for name in "xy"]
    write = {
        Kind.ALL_REDUCE: build.all_reduce, Kind.ALL_GATHER: build.all_gather,
        Kind.REDUCE_SCATTER: build.reduce_scatter,
    }  # fmt: skip
    return build.finish(build.call(aten.add.Tensor, *map(write[kind], inputs)))


@pytest.mark.parametrize("kind", CALLS)
def test_a_coalesced_collective_is_one_for_each_tensor(kind: Kind) -> None:
    written = module(kind)
    graph = spmd_graph(written, MESH, {"x": Varying(), "y": Varying()})
    assert Counter(one.kind for one in statistics(graph.graph).collectives) == {kind: 2}
    assert check(separate(kind), graph).verdict is Verdict.IDENTICAL
    assert any(node.target in SINGLE for node in written.graph.nodes)


def test_lint_looks_at_each() -> None:
    graph = spmd_graph(module(Kind.ALL_REDUCE), MESH, {"x": Varying()})
    assert [one.rule for one in findings(graph)] == ["double-reduction"]


def test_lists_that_are_read_otherwise_stay() -> None:
    written = module(Kind.ALL_REDUCE)
    (several,) = (n for n in written.graph.nodes if n.target in SINGLE)
    (out,) = (n for n in written.graph.nodes if n.op == "output")
    out.args = ((several,),)
    assert any(node.target in SINGLE for node in separated(written.graph).nodes)
