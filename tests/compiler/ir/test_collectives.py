"""Collectives as they are read from, and written to, a graph."""

from __future__ import annotations

import pytest

from compiler.errors import GraphError, MeshError
from compiler.ir.collectives import (
    WAIT,
    Kind,
    all_group_names,
    check_groups,
    collective,
    collectives,
    insert,
    rename_groups,
)
from compiler.ir.mesh import Mesh
from tests.support.graphs import Builder, aten, c10d


def test_every_kind() -> None:
    build = Builder(Mesh({"dp": 1, "tp": 2}))
    x = build.input("x", 4, 2)
    made = [
        build.all_reduce(x, op="max"),
        build.reduce_scatter(x, op="avg"),
        build.all_gather(x, "dp"),
        build.all_to_all(x),
        build.broadcast(x, 1),
    ]
    found = [collective(node) for node in made]
    assert [(c.kind, c.operand, c.group, c.op) for c in found if c] == [
        (Kind.ALL_REDUCE, x, "tp", "max"),
        (Kind.REDUCE_SCATTER, x, "tp", "avg"),
        (Kind.ALL_GATHER, x, "dp", ""),
        (Kind.ALL_TO_ALL, x, "tp", ""),
        (Kind.BROADCAST, x, "tp", ""),
    ]
    assert [c.result for c in found if c] == made
    assert [collective(node.args[0]) for node in made] == found
    graph = build.finish(*made).graph
    assert [(node.target, c) for node, c in collectives(graph)] == [
        (node.args[0].target, c) for node, c in zip(made, found, strict=True)
    ]
    assert all_group_names(graph) == ("tp", "dp")
    check_groups(graph, build.mesh)
    with pytest.raises(MeshError, match="group name 'dp' does not resolve"):
        check_groups(graph, Mesh({"tp": 2}))


def test_what_is_none() -> None:
    build = Builder(Mesh({"tp": 2}))
    x = build.input("x", 4)
    assert collective(x) is None
    assert collective(build.call(aten.neg.default, x)) is None
    assert collective(build.graph.call_function(WAIT, (x,))) is None


def test_collective_that_nothing_waits_for() -> None:
    build = Builder(Mesh({"tp": 2}))
    wait = build.all_reduce(build.input("x", 4))
    started = wait.args[0]
    build.graph.erase_node(wait)
    found = collective(started)
    assert found is not None
    assert found.result is None


@pytest.mark.parametrize("op", ["foo", "", None])
def test_reduction_there_is_not(op: str) -> None:
    build = Builder(Mesh({"tp": 2}))
    wait = build.all_reduce(build.input("x", 4), op=op)
    wait.args[0].meta["stack_trace"] = '  File "/a/model.py", line 8, in f'
    with pytest.raises(GraphError) as caught:
        collective(wait)
    assert str(caught.value) == (
        f"collective %all_reduce_default reduces by {op!r}\n"
        "  where: model.py:8\n"
        "  remedy: one of sum, avg, product, min, max, band, bor, bxor"
    )


def test_group_that_is_no_name() -> None:
    build = Builder(Mesh({"tp": 2}))
    wait = build.all_reduce(build.input("x", 4))
    started = wait.args[0]
    started.args = (*started.args[:2], 7)
    started.meta["stack_trace"] = '  File "/a/model.py", line 8, in f'
    with pytest.raises(GraphError) as caught:
        collective(wait)
    assert str(caught.value) == (
        "collective %all_reduce_default names its group by int\n"
        "  where: model.py:8\n"
        "  remedy: capture with torch.distributed.config.compile_on_one_rank off"
    )


def test_groups_given_by_name_are_listed_and_renamed() -> None:
    build = Builder(Mesh({"dp": 2, "tp": 2}))
    x = build.input("x", 4)
    scattered = build.graph.call_function(
        c10d.reduce_scatter_tensor.default, (x, "sum"), {"group_name": "dp", "group_size": 2}
    )
    placed = build.graph.call_function(c10d.all_reduce.default, (x, "sum", "tp"))
    numbered = build.graph.call_function(c10d.all_reduce.default, (x, "sum"), {"group_name": 7})
    assert all_group_names(build.graph) == ("dp", "tp", "7")
    rename_groups(build.graph, {"dp": "0", "tp": "1", "7": "2"})
    assert scattered.kwargs == {"group_name": "0", "group_size": 2}
    assert placed.args == (x, "sum", "1")
    assert numbered.kwargs == {"group_name": 7}  # collective() says what is wrong with it


def test_insertion() -> None:
    build = Builder(Mesh({"tp": 2}))
    x = build.input("x", 4)
    x.meta["stack_trace"] = "here"
    wait = insert(Kind.ALL_REDUCE, x, "tp", op="avg")
    found = collective(wait)
    assert found is not None
    assert (found.kind, found.operand, found.op, found.group) == (Kind.ALL_REDUCE, x, "avg", "tp")
    assert wait.meta == x.meta
    assert wait.meta is not x.meta
