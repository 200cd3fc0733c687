"""Collectives counted: kind, group, layer, payload."""

from __future__ import annotations

from compiler.analysis.statistics import CountedCollective, statistics
from compiler.ir.collectives import Kind
from compiler.ir.mesh import Mesh
from tests.support.graphs import Builder, function


def test_counts() -> None:
    build = Builder(Mesh({"tp": 2}))
    x = build.input("x", 4, 2)
    x.meta["nn_module_stack"] = {"m": ("layers.0", object)}
    made = (
        build.all_reduce(x), build.all_reduce(x, op="max"), build.reduce_scatter(x),
        build.all_gather(x), build.all_to_all(x), build.broadcast(x, 0),
    )  # fmt: skip
    found = statistics(build.finish(*made).graph)
    assert [(c.kind, c.group, c.op, c.layer, c.payload_bytes) for c in found.collectives] == [
        (Kind.ALL_REDUCE, "tp", "sum", "layers.0", 64),
        (Kind.ALL_REDUCE, "tp", "max", "layers.0", 64),
        (Kind.REDUCE_SCATTER, "tp", "sum", "layers.0", 64),
        (Kind.ALL_GATHER, "tp", "", "layers.0", 128),
        (Kind.ALL_TO_ALL, "tp", "", "layers.0", 64),
        (Kind.BROADCAST, "tp", "", "layers.0", 64),
    ]
    assert isinstance(found.collectives[0], CountedCollective)
    assert found.counts == {"all_reduce": 2, "reduce_scatter": 1, "all_gather": 1,
                            "all_to_all": 1, "broadcast": 1}  # fmt: skip
    assert (found.all_reduces, found.payload_bytes) == (2, 448)


def test_symbolic_sizes_count_as_tokens() -> None:
    graph = function('%0 "x": bf16[s0, 8] {tp: V}',
                     "%1: bf16[s0, 8] = comm.all_reduce(%0) {axis = tp, op = sum}", "return %1",
                     mesh="mesh <tp = 2>\nsym s0 in [2, 64]")  # fmt: skip
    assert statistics(graph.graph, tokens=3).payload_bytes == 48


def test_graph_without_collectives() -> None:
    found = statistics(function('%0 "x": f64[4]', "return %0").graph)
    assert (found.counts, found.all_reduces, found.payload_bytes) == ({}, 0, 0)
