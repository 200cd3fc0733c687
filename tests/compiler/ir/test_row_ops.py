"""Every row is some rank's, padding is zero, and what ranks share is gathered again."""

from __future__ import annotations

import pytest
import torch

from compiler.check.simulate import draw_inputs, simulate
from compiler.ir import access
from compiler.ir.collectives import Kind, collectives
from compiler.ir.mesh import Mesh
from compiler.ir.row_ops import ALL_SLICE, PAD_ROWS, RowSharing, all_slice, own_share, share
from tests.support.graphs import Builder, agree, aten, function
from tests.support.random_graphs import symbolic_tokens


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("rows", [0, 1, 3, 4, 5, 8])
def test_shares_are_the_padded_rows(rows: int, ranks: int) -> None:
    x = torch.randn(2, rows)
    padded = PAD_ROWS(x, 1, ranks)
    assert padded.shape[1] % ranks == 0
    assert padded.shape[1] - rows < ranks
    assert (padded[:, :rows] == x).all()
    assert not padded[:, rows:].any()
    shares = [own_share(x, 1, ranks, i) for i in range(ranks)]
    assert torch.equal(torch.cat(shares, 1), padded)


@pytest.mark.parametrize("rows", [0, 5, 8])
def test_shapes_without_data(rows: int) -> None:
    x = torch.empty(rows, 3, device="meta")
    assert ALL_SLICE(x, 0, 4, "tp").shape == own_share(torch.empty(rows, 3), 0, 4, 0).shape
    assert PAD_ROWS(x, 0, 4).shape == PAD_ROWS(torch.empty(rows, 3), 0, 4).shape


def test_reads_its_arguments() -> None:
    graph = function('%0 "x": f32[3, 8]', '%1: f32[3, 2] = commplan.all_slice(%0, -1, 4, "tp")',
                     "return %1")  # fmt: skip
    x, node, output = graph.graph.nodes
    found = all_slice(node)
    assert found is not None
    assert (found.operand, found.dim, found.group, found.group_size) == (x, 1, "tp", 4)
    assert all_slice(x) is None
    assert all_slice(output) is None


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
