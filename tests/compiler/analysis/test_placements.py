"""Placements per axis, against what the ranks really hold."""

import pytest
import torch

from compiler.analysis.placements import Violation, placements
from compiler.check.simulate import simulate
from compiler.ir import access
from compiler.ir.placement import Partial, Placements, Replicate, Shard, Varying
from tests.support.graphs import function
from tests.support.placed_graphs import placed_graph

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


def test_placements_of_random_graphs_are_those_by_construction_or_varying() -> None:
    derived = 0
    for seed in range(60):
        placed, graph = placed_graph(seed)
        of = placements(graph)
        for value in placed.pool:
            for placement, meant in zip(of[value.node], value.held.values(), strict=True):
                assert placement in (meant, Varying()), (seed, value.node.name)
                derived += placement == meant
    assert derived > 1000


PARTIAL_AND_WHOLE = '%0 "x": f64[4, 8] {tp: P}, %1 "r": f64[4, 8]'


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        ("aten.silu(%0)", "nonlinear-on-partial"),
        ("aten.add.Tensor(%1, %0)", "missing-reduction"),
    ],
)
def test_after_a_violation_the_hook_decides_how_to_go_on(call: str, kind: str) -> None:
    graph = function(PARTIAL_AND_WHOLE, f"%2: f64[4, 8] = {call}", "return %2")
    (result,) = access.results(access.output(graph.graph))
    x = access.node_of(graph.graph, "placeholder")[0]
    met: list[Violation] = []

    def intended(violation: Violation) -> Placements:
        met.append(violation)
        return violation.intended

    assert placements(graph)[result] == (Varying(),)
    assert placements(graph, intended)[result] == (Replicate(),)
    assert [(v.kind, v.node, v.axis, v.operands[0]) for v in met] == [(kind, result, "tp", x)]


def test_a_call_that_is_right_as_it_is_keeps_the_partial_sum() -> None:
    graph = function(PARTIAL_AND_WHOLE, "%2: f64[4, 8] = aten.add.Tensor(%0, %1)", "return %2")
    (result,) = access.results(access.output(graph.graph))
    assert placements(graph, lambda violation: violation.placements)[result] == (Partial(),)


def test_a_product_cut_along_the_contraction_is_added_to_a_partial_sum() -> None:
    weights = '%1 "x": f64[4, 6] {tp: S(1)}, %2 "w": f64[6, 8] {tp: S(0)}'
    line = "%3: f64[4, 8] = aten.addmm(%0, %1, %2)"
    for bias, placement in (("P", Partial()), ("R", Varying())):
        graph = function(f'%0 "b": f64[4, 8] {{tp: {bias}}}, {weights}', line, "return %3")
        (result,) = access.results(access.output(graph.graph))
        assert placements(graph)[result] == (placement,)


def test_collectives_over_another_axis() -> None:
    """Linear reductions and moved rows leave addends addends, and blocks of other dimensions."""
    graph = function(
        '%0 "x": f64[4, 8] {dp: P, tp: S(1)}',
        "%1: f64[8, 8] = comm.all_gather(%0) {axis = tp}",
        "%2: f64[8, 8] = comm.all_gather(%0) {axis = dp}",
        "%3: f64[4, 8] = comm.all_reduce(%0) {axis = tp, op = avg}",
        "%4: f64[4, 8] = comm.all_reduce(%0) {axis = tp, op = max}",
        "return %1, %2, %3, %4",
        mesh="mesh <dp = 2, tp = 2>",
    )
    returned = access.results(access.output(graph.graph))
    derived = [tuple(map(str, placements(graph)[node])) for node in returned]
    assert derived == [("P", "R"), ("R", "S(1)"), ("P", "R"), ("V", "R")]
