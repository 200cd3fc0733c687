"""Who holds the same: the analysis against what simulated ranks really hold."""

from __future__ import annotations

import torch
from torch import fx

from compiler.analysis.replication import (
    classes_of,
    numbered,
    replicated_over,
    replication,
)
from compiler.check.simulate import draw_inputs, simulate
from compiler.ir import access
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Partial, Replicate, Shard, Varying
from compiler.ir.row_ops import ALL_SLICE
from tests.support.graphs import Builder, aten
from tests.support.random_graphs import rank_int, seeded
from tests.support.seeds import share

GRID = Mesh({"dp": 2, "tp": 2}, {"odd": [[0, 3], [1, 2]]})


def test_classes() -> None:
    assert numbered("abca") == (0, 1, 2, 0)
    held = {
        (Replicate(), Replicate()): (0, 0, 0, 0),
        (Replicate(), Shard(0)): (0, 1, 0, 1),
        (Varying(), Replicate()): (0, 0, 1, 1),
        (Partial(), Varying()): (0, 1, 2, 3),
    }
    assert {placements: classes_of(GRID, placements) for placements in held} == held
    assert replicated_over((0, 0, 1, 1), GRID.group("tp"))
    assert not replicated_over((0, 0, 1, 1), GRID.group("dp"))
    assert replicated_over((0, 1, 1, 0), GRID.group("odd"))


def test_collectives() -> None:
    build = Builder(GRID)
    x, y = build.input("x", 4, varies=("dp", "tp")), build.input("y", 4, varies=("tp",))
    found = {
        build.all_reduce(x): (0, 0, 1, 1),
        build.all_reduce(y): (0, 0, 0, 0),
        build.all_reduce(y, "odd"): (0, 0, 0, 0),
        build.all_reduce(y, "dp"): (0, 1, 0, 1),
        build.reduce_scatter(y): (0, 1, 0, 1),
        build.all_gather(y): (0, 0, 0, 0),
        build.all_gather(y, "odd"): (0, 1, 1, 0),
        build.all_to_all(y): (0, 1, 0, 1),
        build.call(ALL_SLICE, build.all_reduce(y), 0, 2, "tp"): (0, 1, 0, 1),
        build.call(ALL_SLICE, x, 0, 2, "dp"): (0, 1, 2, 3),
        build.broadcast(x, 1, "dp"): (0, 1, 0, 1),
        build.call(aten.narrow.default, y, 0, rank_int(0, 1, 1, 0), 2): (0, 1, 2, 3),
        build.call(aten.mul.Tensor, build.all_reduce(x), build.all_reduce(y)): (0, 0, 1, 1),
        build.call(aten.rand_like.default, y): (0, 1, 2, 3),
        build.call(aten.full.default, [2], 1.0, device=torch.device("meta")): (0, 0, 0, 0),
    }
    known = replication(build.finish(*found))
    assert {node.name: known[node] for node in found} == {n.name: c for n, c in found.items()}


@torch.library.custom_op("commplan_tests::unruled", mutates_args=())
def unruled(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@unruled.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def test_op_without_a_rule_may_read_its_rank() -> None:
    build = Builder(GRID)
    node = build.call(torch.ops.commplan_tests.unruled.default, build.input("x", 2))
    assert replication(build.finish(node))[node] == (0, 1, 2, 3)


def every_value(graph: SpmdGraph) -> tuple[SpmdGraph, list[fx.Node]]:
    """The graph that returns all its tensors."""
    nodes = [n for n in graph.graph.nodes if access.is_tensor(n) and "wait" not in n.name]
    nodes = [n for n in nodes if "c10d" not in str(n.target)]
    output = access.output(graph.graph)
    output.args = (tuple(nodes),)
    return graph, nodes


def test_equal_classes_hold_equal_tensors() -> None:
    for seed in range(share(120)):
        graph, nodes = every_value(seeded(seed))
        known = replication(graph)
        for node, held in zip(nodes, simulate(graph, draw_inputs(graph, seed)), strict=True):
            first = {c: held[known[node].index(c)] for c in known[node]}
            for rank, c in enumerate(known[node]):
                assert torch.equal(held[rank], first[c]), (seed, node.name)
