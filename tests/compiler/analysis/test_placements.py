"""Placements per axis, against what the ranks really hold."""

import torch

from compiler.analysis.placements import placements
from compiler.check.simulate import simulate
from compiler.ir import access
from compiler.ir.placement import Partial, Replicate, Shard, Varying
from tests.support.graphs import function

MLP = function(
    '%0 "x": f64[4, 8] {tp: R}, %1 "up": f64[8, 6] {tp: S(1)}, %2 "down": f64[6, 8] {tp: S(0)}',
    "%3: f64[4, 6] = aten.mm(%0, %1)",
    "%4: f64[4, 6] = aten.silu(%3)",
    "%5: f64[4, 8] = aten.mm(%4, %2)",
    "%6: f64[4, 8] = aten.mul.Tensor(%5, 0.5)",
    "%7: f64[4, 8] = comm.all_reduce(%6) {axis = tp, op = sum}",
    "%8: f64[4, 8] = aten.silu(%5)",
    "%9: f64[1, 8] = comm.reduce_scatter(%6) {axis = tp, op = sum}",
    "%10: f64[16, 8] = comm.all_gather(%8) {axis = tp}",
    "return %3, %4, %5, %6, %7, %8, %9, %10",
)


def derived() -> list[str]:
    found = placements(MLP)
    return [str(found[node][0]) for node in access.results(access.output(MLP.graph))]


def test_a_column_parallel_then_row_parallel_product() -> None:
    assert derived() == ["S(1)", "S(1)", "P", "P", "R", "V", "S(0)", "R"]


def test_the_ranks_hold_what_is_derived() -> None:
    generator = torch.Generator().manual_seed(0)
    x, up, down = (
        torch.randn(shape, dtype=torch.float64, generator=generator)
        for shape in ((4, 8), (8, 24), (24, 8))
    )
    held = simulate(MLP, {"x": [x] * 4, "up": up.chunk(4, 1), "down": list(down.chunk(4, 0))})
    hidden = torch.nn.functional.silu(x @ up)
    product = hidden @ down
    parts = [a @ b for a, b in zip(hidden.chunk(4, 1), down.chunk(4, 0), strict=True)]
    own = [torch.nn.functional.silu(part) for part in parts]
    half = 0.5 * product
    whole = [x @ up, hidden, product, half, half, torch.stack(own), half, torch.cat(own)]
    found = placements(MLP)
    outputs = access.results(access.output(MLP.graph))
    for node, ranks, want in zip(outputs, held, whole, strict=True):
        match found[node][0]:
            case Replicate():
                got, want = torch.stack(ranks), want.expand(len(ranks), *want.shape)
            case Shard(dim):
                got = torch.cat(ranks, dim)
            case Partial("sum"):
                got = torch.stack(ranks).sum(0)
            case Varying():
                got = torch.stack(ranks)
            case other:
                raise AssertionError(f"{node.name}: {other}")
        torch.testing.assert_close(got, want)


def test_two_axes_are_told_apart() -> None:
    graph = function(
        '%0 "x": f64[4, 8] {dp: S(0), tp: P}',
        "%1: f64[4, 8] = comm.all_reduce(%0) {axis = tp, op = sum}",
        "%2: f64[8, 4] = aten.t(%1)",
        "return %1, %2",
        mesh="mesh <dp = 2, tp = 2>",
    )
    found = placements(graph)
    summed, turned = access.results(access.output(graph.graph))
    assert found[summed] == (Shard(0), Replicate())
    assert found[turned] == (Shard(1), Replicate())
