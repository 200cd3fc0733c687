"""Rows are shared and gathered along any dimension, whatever their number."""

from __future__ import annotations

import pytest
import torch

from compiler.check.simulate import draw_inputs, simulate
from compiler.ir import access
from compiler.ir.collectives import Kind, collectives
from compiler.ir.mesh import Mesh
from compiler.ir.redistribute import RowSharing
from compiler.ir.row_ops import share
from tests.support.graphs import Builder, agree, aten
from tests.support.random_graphs import symbolic_tokens

MESH = Mesh({"tp": 4})


def builder(dim: int, rows: int | torch.SymInt, varies: tuple[str, ...] = ()) -> Builder:
    build = Builder(MESH)
    build.input("x", *[1] * dim, rows, 2, varies=varies)
    return build


def input_of(build: Builder) -> torch.fx.Node:
    (x,) = build.graph.find_nodes(op="placeholder")
    return x


every_dim = pytest.mark.parametrize("dim", [0, 1, 2])
every_number = pytest.mark.parametrize("rows", [2, 5, 8])


@every_dim
@every_number
def test_what_is_cut_and_gathered_is_as_it_was(dim: int, rows: int) -> None:
    build, sharing = builder(dim, rows), RowSharing("tp", 4)
    own = sharing.cut(input_of(build), rows, dim)
    assert list(access.shape(own)) == [*[1] * dim, share(rows, 4), 2]
    same = builder(dim, rows)
    assert agree(build.finish(sharing.gather(own, rows, dim)), same.finish(input_of(same)))


@every_dim
@every_number
def test_what_is_scattered_and_gathered_is_the_sum(dim: int, rows: int) -> None:
    build, sharing = builder(dim, rows, ("tp",)), RowSharing("tp", 4)
    own = sharing.scatter(input_of(build), rows, dim, "sum")
    assert list(access.shape(own)) == [*[1] * dim, share(rows, 4), 2]
    graph, summed = build.finish(sharing.gather(own, rows, dim)), builder(dim, rows, ("tp",))
    assert agree(graph, summed.finish(summed.all_reduce(input_of(summed))))
    assert [c.kind for _, c in collectives(graph.graph)] == [Kind.REDUCE_SCATTER, Kind.ALL_GATHER]


@pytest.mark.parametrize("tokens", [4, 5, 7])
def test_an_open_number_of_rows_is_read_where_they_are_whole(tokens: int) -> None:
    mode, rows = symbolic_tokens()
    build, sharing = Builder(MESH, mode=mode), RowSharing("tp", 4)
    x = build.input("x", rows, 2)
    doubled = build.call(aten.add.Tensor, sharing.cut(x, rows, 0), 1)
    graph = build.finish(sharing.gather(doubled, rows, 0))
    (size,) = graph.graph.find_nodes(op="call_function", target=aten.sym_size.int)
    assert size.all_input_nodes == [x]
    drawn = draw_inputs(graph, 0, tokens)
    ((result, *_),) = simulate(graph, drawn, exact=True)
    assert result.shape == (tokens, 2)


def test_a_number_of_rows_that_nobody_holds_is_not_read() -> None:
    _, rows = symbolic_tokens()
    sharing = RowSharing("tp", 4)
    assert sharing.count(rows) is None
    assert sharing.count(8) is None
