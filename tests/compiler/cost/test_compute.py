"""What kernels take: bytes, products, views, shards."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import fx

from compiler.cost import MachineError, load_machine, work
from compiler.ir import access
from compiler.ir.mesh import Mesh
from tests.support.graphs import Builder, aten, function

H100 = load_machine("h100x8")
BF16 = torch.bfloat16


def built(target: Any, *shapes: tuple[int, ...], dtype: torch.dtype = BF16, **rest: Any) -> fx.Node:
    build = Builder(Mesh({"tp": 8}))
    inputs = [build.input(f"x{i}", *shape, dtype=dtype) for i, shape in enumerate(shapes)]
    return build.call(target, *inputs, **rest)


@pytest.mark.parametrize(
    ("target", "shapes", "flop"),
    [
        (aten.mm.default, [(6, 5), (5, 7)], 2 * 6 * 5 * 7),
        (aten.linear.default, [(2, 6, 5), (7, 5)], 2 * 12 * 5 * 7),
        (aten.linear.default, [(6, 5), (7, 5), (7,)], 2 * 6 * 5 * 7),
        (aten.addmm.default, [(7,), (6, 5), (5, 7)], 2 * 6 * 5 * 7),
        (aten.bmm.default, [(3, 6, 5), (3, 5, 7)], 2 * 3 * 6 * 5 * 7),
        (aten.matmul.default, [(3, 6, 5), (5, 7)], 2 * 3 * 6 * 5 * 7),
        (aten.mv.default, [(6, 5), (5,)], 2 * 6 * 5),
        (aten.scaled_dot_product_attention.default, [(1, 2, 6, 4), (1, 2, 9, 4), (1, 2, 9, 3)],
         2 * 2 * 6 * 9 * (4 + 3)),
        (aten.mul.Tensor, [(6, 5), (6, 5)], 0),
        (aten.outer.default, [(6,), (5,)], 0),
    ],
)  # fmt: skip
def test_products(target: Any, shapes: list[tuple[int, ...]], flop: int) -> None:
    found = work(built(target, *shapes))
    assert found.flop(()) == flop
    assert (found.dtype is BF16) == bool(flop)


def test_einsum_products() -> None:
    build = Builder(Mesh({"tp": 8}))
    x, y = build.input("x", 4, 6, 5, dtype=BF16), build.input("y", 4, 5, 7, dtype=BF16)
    node = build.call(aten.einsum.default, "bik,bkj->bij", [x, y])
    assert work(node).flop(()) == 2 * 4 * 6 * 5 * 7


def test_experts_are_products() -> None:
    build = Builder(Mesh({"tp": 8}))
    x, w = build.input("x", 32, 16, dtype=BF16), build.input("w", 4, 16, 8, dtype=BF16)
    ends = build.input("ends", 4, dtype=torch.int32)
    node = build.call(aten._grouped_mm.default, x, w, ends)
    assert work(node).flop(()) == 2 * 32 * 16 * 8


def test_bytes_of_distinct_operands_and_results() -> None:
    build = Builder(Mesh({"tp": 8}))
    x, y = build.input("x", 4, 8, dtype=BF16), build.input("y", 8, dtype=BF16)
    assert work(build.call(aten.add.Tensor, x, y)).bytes_moved(()) == 64 + 16 + 64
    assert work(build.call(aten.add.Tensor, x, x)).bytes_moved(()) == 64 + 64
    wide = build.call(aten.expand.default, build.input("z", 1, 8, dtype=BF16), [4, 8])
    assert work(build.call(aten.add.Tensor, x, wide)).bytes_moved(()) == 64 + 16 + 64
    parts = build.call(aten.topk.default, x, 2)
    assert work(parts).bytes_moved(()) == 64 + 4 * 2 * (2 + 8)


def test_only_shapes_are_read() -> None:
    build = Builder(Mesh({"tp": 8}))
    x, y = build.input("x", 4, 8, dtype=BF16), build.input("y", 4, 8, dtype=BF16)
    assert work(build.call(aten.copy.default, x, y)).bytes_moved(()) == 64 + 64
    assert work(build.call(aten.zeros_like.default, x)).bytes_moved(()) == 64
    assert work(build.call(aten.empty_like.default, x)).is_free


def test_a_gather_reads_what_it_writes() -> None:
    build = Builder(Mesh({"tp": 8}))
    table, ids = build.input("t", 1000, 8, dtype=BF16), build.input("i", 3, dtype=torch.int64)
    picked = work(build.call(aten.embedding.default, table, ids))
    assert picked.bytes_moved(()) == 2 * 3 * 8 * 2 + 3 * 8
    rows = work(build.call(aten.index.Tensor, table, [ids]))
    assert rows.bytes_moved(()) == picked.bytes_moved(())
    source = build.input("s", 3, 8, dtype=BF16)
    added = work(build.call(aten.index_add.default, table, 0, ids, source))
    assert added.bytes_moved(()) == 2 * 16000 + 3 * 8 * 2 + 3 * 8
    total = work(build.call(aten.sum.dim_IntList, table, [0]))
    assert total.bytes_moved(()) == 16000 + 16  # a reduction reads everything


def test_views_cost_nothing_and_copies_do() -> None:
    build = Builder(Mesh({"tp": 8}))
    x = build.input("x", 4, 6, dtype=BF16)
    turned = build.call(aten.t.default, x)
    for free in (
        turned,
        build.call(aten.view.default, x, [24]),
        build.call(aten._unsafe_view.default, x, [24]),
        build.call(aten.slice.Tensor, x, 0, 1, 3),
        build.call(aten.expand.default, x, [2, 4, 6]),
        build.call(aten.split_with_sizes.default, x, [1, 3]),
        build.call(aten.reshape.default, x, [2, 12]),
        build.call(aten.contiguous.default, x),
        x,
    ):
        assert work(free).time_ps({}, H100, launch="eager") == 0, free
    for copy in (
        build.call(aten.reshape.default, turned, [24]),
        build.call(aten.contiguous.default, turned),
        build.call(aten.clone.default, x),
        build.call(aten._to_copy.default, x, dtype=torch.float32),
        build.call(aten.cat.default, [x, x]),
    ):
        assert work(copy).time_ps({}, H100, launch="eager") >= H100.launch_ps("eager"), copy


def test_roofline() -> None:
    large = built(aten.mm.default, (4096, 4096), (4096, 4096))
    assert work(large).time_ps({}, H100, launch="graph") == H100.launch_ps("graph") + (
        2 * 4096**3 * 10**6 // H100.matmul_flop_per_us(BF16)
    )
    thin = built(aten.mm.default, (1, 4096), (4096, 4096))
    moved = 2 * (4096 + 4096 * 4096 + 4096)
    assert work(thin).time_ps({}, H100, launch="eager") == H100.launch_ps("eager") + (
        moved * 10**6 // H100.memory_bytes_per_us
    )


SYMBOLIC = """mesh <tp = 8>
sym s0 in [2, 65536]"""


def symbolic(line: str) -> fx.Node:
    graph = function('%0 "x": bf16[s0, 4096] {tp: V}, %1 "w": bf16[288, 4096] {tp: V}', line,
                     "return %2", mesh=SYMBOLIC)  # fmt: skip
    return next(n for n in graph.graph.nodes if n.op == "call_function")


def test_shards_divide_the_rows_alone() -> None:
    node = symbolic("%2: bf16[s0, 288] = aten.linear(%0, %1)")
    found, sizes = work(node), (("s0", 1001),)
    rows, weight = 1001 * (4096 + 288) * 2, 288 * 4096 * 2
    assert found.bytes_moved(sizes) == rows + weight
    shard = -(-1001 * 4096 * 2 // 8) - (-1001 * 288 * 2 // 8)
    assert found.bytes_moved(sizes, 8) == shard + weight
    assert found.flop(sizes, 8) == -(-2 * 1001 * 288 * 4096 // 8)
    for tokens in (0, 1, 7, 8, 9):
        whole, part = (
            work(node).time_ps({"s0": tokens}, H100, shards=n, launch="graph") for n in (1, 8)
        )
        assert H100.launch_ps("graph") <= part <= whole


def test_without_symbols_rows_are_those_of_the_result() -> None:
    found = work(built(aten.linear.default, (16, 4), (32, 4)))
    assert found.bytes_moved((), 8) == (16 * 4 * 2 + 16 * 32 * 2) // 8 + 32 * 4 * 2


def test_work_is_shared_by_calls_that_do_the_same() -> None:
    build = Builder(Mesh({"tp": 8}))
    x = build.input("x", 4, 8, dtype=BF16)
    assert work(build.call(aten.silu.default, x)) is work(build.call(aten.silu.default, x))


def test_an_operand_is_read_once_however_often_it_is_listed() -> None:
    build = Builder(Mesh({"tp": 8}))
    x, y = (build.input(name, 4, 8, dtype=BF16) for name in "xy")
    product, square = (work(build.call(aten.mul.Tensor, x, other)) for other in (y, x))
    assert (product.bytes_moved(()), square.bytes_moved(())) == (3 * 64, 2 * 64)


def test_what_is_known_of_calls_keeps_no_graph_alive() -> None:
    node = symbolic("%2: bf16[s0, 4096] = aten.erfc(%0)")  # a call that no other test makes
    assert work(node) is work(node)
    graph = weakref.ref(node.graph)
    del node
    gc.collect()
    assert graph() is None


def test_an_op_without_a_rule_counts_by_its_bytes() -> None:
    node = built(aten.linalg_inv_ex.default, (4, 4), dtype=torch.float32)
    assert access.is_operand(node)
    assert work(node).bytes_moved(()) == 64 + 64 + 4
    assert work(node).flop(()) == 0


def test_unknown_sizes_and_rates_raise() -> None:
    node = symbolic("%2: bf16[s0, 288] = aten.linear(%0, %1)")
    with pytest.raises(MachineError, match="size symbol s0 has no value"):
        work(node).time_ps({"s1": 3}, H100, launch="eager")
    product = built(aten.mm.default, (64, 64), (64, 64), dtype=torch.float64)
    with pytest.raises(MachineError, match="a matmul rate for float64"):
        work(product).time_ps({}, H100, launch="eager")
