"""Values of single graphs in the model: who holds the same, keys, and what is unknown."""

from __future__ import annotations

import torch

from compiler.check.algebra import of_ranks
from compiler.check.interpret import Interpreter
from compiler.check.sizes import symbols
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import Mesh
from tests.support.graphs import Builder, aten, function
from tests.support.random_graphs import rank_int


def classes(graph: SpmdGraph, name: str) -> list[int]:
    """Ranks by what they hold of a value: equal numbers, equal tensors."""
    values = Interpreter(graph, {}).run()
    (held,) = (v for node, v in values.items() if node.name == name)
    seen: dict[bytes, int] = {}
    return [
        seen.setdefault(row.tobytes(), len(seen)) for row in of_ranks(held.data, graph.mesh.size)
    ]


def test_inputs_hold_what_their_placements_say() -> None:
    graph = function('%0 "a": f64[2], %1 "b": f64[2] {tp: V}, %2 "c": f64[2] {dp: S(0)}, '
                     '%3 "d": f64[2] {dp: V, tp: P}', "return %0",
                     mesh="mesh <dp = 2, tp = 2>")  # fmt: skip
    assert [classes(graph, n) for n in "abcd"] == [
        [0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 1], [0, 1, 2, 3]
    ]  # fmt: skip


def test_collectives_make_groups_alike_where_they_do() -> None:
    build = Builder(Mesh({"dp": 2, "tp": 2}))
    x = build.input("x", 4, varies=("dp", "tp"))
    made = {
        "all_reduce": build.all_reduce(x),
        "max": build.all_reduce(x, op="max"),
        "gather": build.all_gather(x),
        "broadcast": build.broadcast(x, 0),
        "scatter": build.reduce_scatter(x),
        "to_all": build.all_to_all(x),
    }
    graph = build.finish(*made.values())
    alike, apart = [0, 0, 1, 1], [0, 1, 2, 3]
    expected = {name: apart if name in ("scatter", "to_all") else alike for name in made}
    assert {name: classes(graph, node.name) for name, node in made.items()} == expected


def test_numbers_that_differ_between_ranks_do_not_look_replicated() -> None:
    build = Builder(Mesh({"tp": 2}))
    x = build.input("x", 4)
    made = [
        build.call(aten.narrow.default, x, 0, rank_int(0, 2), 2),
        build.call(aten.mul.Tensor, x, rank_int(1, 2)),
        build.call(aten.add.Tensor, x, x, alpha=rank_int(1, 2)),
        build.call(aten.clamp.default, x, rank_int(0, 1)),
        build.call(aten.full.default, [4], rank_int(3, 4), device=torch.device("meta")),
    ]
    graph = build.finish(*made)
    for node in made:
        assert classes(graph, node.name) == [0, 1], str(node.target)


def test_random_ops_differ_between_ranks_and_calls() -> None:
    graph = function('%0 "x": f64[2]', "%1: f64[2] = aten.rand_like(%0)",
                     "%2: f64[2] = aten.rand_like(%0)", "return %1")  # fmt: skip
    assert classes(graph, "v1") == [0, 1, 2, 3]
    values = {n.name: v for n, v in Interpreter(graph, {}).run().items()}
    assert not (values["v1"].data == values["v2"].data).all()


@torch.library.custom_op("commplan_tests::secret", mutates_args=())
def secret(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@secret.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def test_op_without_a_rule_may_read_its_rank_and_every_other() -> None:
    build = Builder(Mesh({"tp": 2}))
    r = build.input("r", 2)
    graph = build.finish(build.call(torch.ops.commplan_tests.secret.default, r))
    assert classes(graph, "secret_default") == [0, 1]


def test_names_of_attributes_identify_tensors() -> None:
    build = Builder(Mesh({"tp": 2}), {"a": torch.ones(2), "b": torch.ones(2)})
    a, b = build.attribute("a"), build.attribute("b")
    graph = build.finish(a, b)
    apart = Interpreter(graph, {"a": "a", "b": "b"}).run()
    alike = Interpreter(graph, {"a": "a", "b": "a"}).run()
    assert not (apart[a].data == apart[b].data).all()
    assert (alike[a].data == alike[b].data).all()


def test_symbols_are_named_by_their_first_appearance() -> None:
    mesh = "mesh <tp = 2>\nsym s7 in [2, 64]\nsym b in [2, 64]"
    graph = function('%0 "x": f64[4, s7], %1 "y": f64[b, s7]', "return %0", mesh=mesh)
    assert symbols(graph) == {"s7": "size0", "b": "size1"}
