"""The lockstep simulator against definitions, and against PyTorch's own simulated ranks."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from compiler.check.simulate import draw_inputs, simulate
from compiler.ir.mesh import Mesh
from tests.support.graphs import Builder, aten, function, outcome
from tests.support.random_graphs import rank_int, seeded

HELD = [torch.arange(4.0).reshape(4, 1) * 10**r for r in range(2)]


@pytest.mark.parametrize(
    ("kind", "args", "expected"),
    [
        ("all_reduce", {"op": "sum"}, [[0, 11, 22, 33]] * 2),
        ("all_reduce", {"op": "avg"}, [[0, 5.5, 11, 16.5]] * 2),
        ("all_reduce", {"op": "max"}, [[0, 10, 20, 30]] * 2),
        ("all_reduce", {"op": "min"}, [[0, 1, 2, 3]] * 2),
        ("all_reduce", {"op": "product"}, [[0, 10, 40, 90]] * 2),
        ("reduce_scatter", {"op": "sum"}, [[0, 11], [22, 33]]),
        ("all_gather", {}, [[0, 1, 2, 3, 0, 10, 20, 30]] * 2),
        ("all_to_all", {}, [[0, 1, 0, 10], [2, 3, 20, 30]]),
        ("broadcast", {"src": 1}, [[0, 10, 20, 30]] * 2),
    ],
)
def test_collectives(kind: str, args: dict[str, Any], expected: list[list[float]]) -> None:
    build = Builder(Mesh({"tp": 2}))
    x = build.input("x", 4, 1, varies=("tp",), dtype=torch.float32)
    graph = build.finish(getattr(build, kind)(x, **args))
    (found,) = simulate(graph, {"x": HELD})
    assert [t.flatten().tolist() for t in found] == expected


def test_order_of_ranks_in_a_group_is_the_order_of_shards() -> None:
    build = Builder(Mesh({"tp": 2}, {"back": [[1, 0]]}))
    x = build.input("x", 4, 1, varies=("tp",), dtype=torch.float32)
    graph = build.finish(build.reduce_scatter(x, "back"))
    (found,) = simulate(graph, {"x": HELD})
    assert [t.flatten().tolist() for t in found] == [[22, 33], [0, 11]]


def test_groups_do_not_mix() -> None:
    build = Builder(Mesh({"dp": 2, "tp": 2}))
    graph = build.finish(*(build.all_reduce(build.input(n, 1, varies=("dp", "tp")), group)
                           for n, group in (("x", "dp"), ("y", "tp"))))  # fmt: skip
    held = [torch.tensor([float(r)]) for r in range(4)]
    found = simulate(graph, {"x": held, "y": held})
    assert [[float(t) for t in side] for side in found] == [[2, 4, 2, 4], [1, 1, 5, 5]]


def test_unknown_reduction() -> None:
    build = Builder(Mesh({"tp": 2}))
    graph = build.finish(build.all_reduce(build.input("x", 1), op="bxor"))
    with pytest.raises(NotImplementedError, match="simulation of reduction 'bxor'"):
        outcome(graph, 0)


def test_each_rank_reads_its_own_numbers() -> None:
    build = Builder(Mesh({"tp": 2}))
    x = build.input("x", 4)
    graph = build.finish(build.call(aten.narrow.default, x, 0, rank_int(0, 2), 2))
    (found,) = simulate(graph, {"x": [torch.arange(4.0)] * 2})
    assert [t.tolist() for t in found] == [[0, 1], [2, 3]]


def test_exact_mode_computes_in_float64_whatever_the_graph_says() -> None:
    graph = function(
        '%0 "x": bf16[2]',
        "%1: f32[2] = aten._to_copy(%0, dtype = f32)",
        "%2: bf16[2] = aten._to_copy(%1, dtype = bf16)",
        "%3: bf16[2] = aten.add.Tensor(%2, 1)",
        "return %3",
    )
    held = torch.tensor([1 / 3, 1000.0], dtype=torch.float64)
    (exact,) = simulate(graph, {"x": [held] * 4}, exact=True)
    assert exact[0].dtype == torch.float64
    assert torch.equal(exact[0], held + 1)
    (rounded,) = simulate(graph, {"x": [held.bfloat16()] * 4})
    assert rounded[0].dtype == torch.bfloat16
    assert not torch.equal(rounded[0].double(), held + 1)


def test_devices_are_not_needed() -> None:
    build = Builder(Mesh({"tp": 2}))
    made = build.call(aten.full.default, [2], 3.0, device=torch.device("meta"))
    (found,) = simulate(build.finish(made), {})
    assert [t.tolist() for t in found] == [[3, 3], [3, 3]]


def test_inputs_obey_placements() -> None:
    graph = seeded(3)
    drawn = draw_inputs(graph, 5)
    groups = {"x": ((0, 2), (1, 3)), "z": ((0, 1, 2, 3),)}
    for name, alike in groups.items():
        for group in alike:
            assert all(torch.equal(drawn[name][r], drawn[name][group[0]]) for r in group)
    assert not torch.equal(drawn["x"][0], drawn["x"][1])
    assert len({tuple(t.flatten().tolist()) for t in drawn["y"]}) == 4
    assert all(torch.equal(a, b) for a, b in
               zip(drawn["y"], draw_inputs(graph, 5)["y"], strict=True))  # fmt: skip
    assert not torch.equal(drawn["y"][0], draw_inputs(graph, 6)["y"][0])
    assert float((drawn["x"][0] * 8).frac().abs().max()) == 0
    assert set(drawn["index"][0].tolist()) <= {0, 1}


def test_real_attributes_keep_their_values_and_symbols_become_tokens() -> None:
    build = Builder(Mesh({"tp": 2}), {"w": torch.tensor([7.0, 8.0], dtype=torch.float64)})
    graph = build.finish(build.attribute("w"))
    assert [t.tolist() for t in draw_inputs(graph, 0)["w"]] == [[7, 8], [7, 8]]
    (found,) = simulate(graph, {})
    assert [t.tolist() for t in found] == [[7, 8], [7, 8]]
    sized = function('%0 "x": f64[s0, 2], %1 "n": sym(s0)', "return %0, %1",
                     mesh="mesh <tp = 2>\nsym s0 in [2, 64]")  # fmt: skip
    drawn = draw_inputs(sized, 0, tokens=6)
    assert (drawn["x"][0].shape, drawn["n"]) == ((6, 2), [6, 6])


def test_real_attributes_that_vary_are_drawn_for_every_rank() -> None:
    build = Builder(Mesh({"tp": 2}), {"w": torch.tensor([7.0, 8.0], dtype=torch.float64)})
    first, second = draw_inputs(build.finish(build.attribute("w", varies=("tp",))), 0)["w"]
    assert first.shape == second.shape == (2,)
    assert first.tolist() != second.tolist()


def test_an_input_left_out_is_a_bug_of_the_caller() -> None:
    with pytest.raises(AssertionError, match="no value for input x"):
        simulate(function('%0 "x": f64[2]', "return %0"), {})


# An independent executor. -----------------------------------------------------------------------


@pytest.fixture
def four_ranks() -> Iterator[Any]:
    """torch's LocalTensor and its mode, where this torch has them."""
    pytest.importorskip("torch.distributed._local_tensor")
    local = importlib.import_module("torch.distributed._local_tensor")
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield local
    dist.destroy_process_group()


def test_agrees_with_local_tensor_mode(four_ranks: Any) -> None:
    world = dist.group.WORLD
    assert world is not None
    mesh = Mesh({"tp": 4}, {world.group_name: [[0, 1, 2, 3]]})
    build = Builder(mesh)
    x = build.input("x", 4, 4, varies=("tp",))
    w = build.input("w", 4, 4, varies=("tp",))
    name = world.group_name
    product = build.call(aten.mm.default, x, w)
    summed = build.all_reduce(product, name)
    averaged = build.all_reduce(product, name, "avg")
    largest = build.all_reduce(product, name, "max")
    block = build.reduce_scatter(build.call(aten.silu.default, summed), name)
    graph = build.finish(
        summed, averaged, largest, block, build.all_gather(block, name), build.all_to_all(x, name)
    )
    drawn = draw_inputs(graph, 0)
    with four_ranks.LocalTensorMode(4):
        inputs = [
            four_ranks.LocalTensor(dict(enumerate(t.clone() for t in drawn[n]))) for n in "xw"
        ]
        found = graph.module(*inputs)
    for want, got in zip(simulate(graph, drawn), found, strict=True):
        for rank, tensor in enumerate(want):
            torch.testing.assert_close(got._local_tensors[rank], tensor)
