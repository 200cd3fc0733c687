"""Grouped products of sorted rows are products of every row with its own expert's matrix."""

from __future__ import annotations

import pytest
import torch

from compiler.check.simulate import simulate
from compiler.check.single_device.sorted_rows import with_rows_in_order
from compiler.ir import access
from compiler.ir.mesh import Mesh
from tests.support.graphs import Builder

aten = torch.ops.aten
T, K, E, H, INNER = 6, 2, 4, 16, 32


def experts(
    divisor=K,
    right=True,
    inverse=True,
    descending=False,
    counted=(E,),
    curved=aten.silu.default,
    start_of=aten.arange.default,
):
    """Experts of sorted rows; each argument can make it something else."""
    b = Builder(Mesh({"tp": 1}))
    x = b.input("x", T, H, dtype=torch.bfloat16)
    ids = b.input("ids", T * K, dtype=torch.int64)
    up = b.input("up", E, H, INNER, dtype=torch.bfloat16)
    down = b.input("down", E, INNER, H, dtype=torch.bfloat16)
    order = b.call(aten.argsort.stable, ids, stable=True, descending=descending)
    ordered = b.call(aten.index.Tensor, ids, [order])
    counts = aten.arange.default if len(counted) == 1 else aten.arange.start
    numbers = b.call(counts, *counted, device=torch.device("meta"))
    ends = b.call(aten.searchsorted.Tensor, ordered, numbers, out_int32=True, right=right)
    tokens = b.call(aten.floor_divide.default, order, divisor)
    rows = b.call(aten.index.Tensor, x, [tokens])
    inner = b.call(curved, b.call(aten._grouped_mm.default, rows, up, ends))
    out = b.call(aten._grouped_mm.default, inner, down, ends)
    if inverse == "scatter":
        places = b.call(start_of, T * K, device=torch.device("meta")) if start_of else ids
        blank = b.call(aten.zeros_like.default, order)
        out = b.call(aten.index.Tensor, out, [b.call(aten.scatter.src, blank, 0, order, places)])
    elif inverse:
        out = b.call(aten.index.Tensor, out, [b.call(aten.argsort.default, order)])
    return b.finish(out)


@pytest.mark.parametrize("inverse", [True, "scatter"])
def test_sorting_is_left_out(inverse):
    source = experts(inverse=inverse)
    target = with_rows_in_order(source)
    ops = {n.target for n in target.graph.nodes}
    assert aten._grouped_mm.default not in ops
    assert aten.argsort.stable not in ops
    generator = torch.Generator().manual_seed(0)
    drawn = {
        "x": torch.randn(T, H, generator=generator),
        "ids": torch.randint(E, (T * K,), generator=generator),
        "up": torch.randn(E, H, INNER, generator=generator) / 4,
        "down": torch.randn(E, INNER, H, generator=generator) / 4,
    }
    inputs = {n: [x.bfloat16() if n != "ids" else x] for n, x in drawn.items()}
    before, after = (simulate(graph, inputs)[0][0].float() for graph in (source, target))
    torch.testing.assert_close(before, after, rtol=2e-2, atol=2e-2)
    assert before.abs().max() > 0.5


@pytest.mark.parametrize(
    "options",
    [
        {"right": False},
        {"inverse": False},
        {"inverse": "scatter", "start_of": None},
        {"descending": True},
        {"divisor": access.RankInt(K, (K,))},
        {"counted": (0, E)},
        {"curved": lambda x: aten.cumsum.default(x, 0)},
    ],
    ids=[
        "ends of the left",
        "not put back",
        "put elsewhere",
        "descending",
        "by rank",
        "other ends",
        "mixes rows",
    ],
)
def test_rows_that_are_read_otherwise_stay_sorted(options):
    source = experts(**options)
    assert with_rows_in_order(source) is source


def test_graphs_without_grouped_products_stay():
    b = Builder(Mesh({"tp": 1}))
    graph = b.finish(b.call(aten.argsort.default, b.input("ids", 4, dtype=torch.int64)))
    assert with_rows_in_order(graph) is graph
