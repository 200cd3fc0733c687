"""Models on one device and on four ranks: right ones are proved, wrong ones refuted."""

from __future__ import annotations

import operator

import pytest
import torch

from compiler.check import Verdict
from compiler.check.single_device import Packed, check_single_device
from compiler.check.single_device.layouts import Layout
from compiler.errors import PlacementError
from compiler.ir.mesh import Mesh
from tests.compiler.check.single_device.twins import (
    RANKS,
    aten,
    columns,
    compared,
    graph,
    numbers,
    reduced,
    right,
    shapes_on_ranks,
    wrong,
)
from tests.support.graphs import Builder, function

T, H, INNER = 8, 16, 32
MLP = {"x": (T, H), "gate": (INNER, H), "up": (INNER, H), "down": (H, INNER)}
CUT = {"gate": 0, "up": 0, "down": 1}


def mlp(b, v, x=None):
    x = v["x"] if x is None else x
    gate = b.call(aten.silu.default, b.call(aten.linear.default, x, v["gate"]))
    inner = b.call(aten.mul.Tensor, gate, b.call(aten.linear.default, x, v["up"]))
    return b.call(aten.linear.default, inner, v["down"])


def test_column_then_row_parallel():
    right(compared(mlp, lambda b, v: reduced(b, mlp(b, v)), MLP, CUT))


@pytest.mark.parametrize(
    "body",
    [
        mlp,
        lambda b, v: reduced(b, reduced(b, mlp(b, v))),
        lambda b, v: reduced(b, mlp(b, v), "avg"),
        lambda b, v: b.call(aten.div.Tensor, reduced(b, mlp(b, v)), RANKS),
        lambda b, v: reduced(b, b.call(aten.add.Tensor, mlp(b, v), 1)),
    ],
    ids=["missing", "double", "averaged", "scaled", "constant on every rank"],
)
def test_wrong_reductions(body):
    wrong(compared(mlp, body, MLP, CUT))


def test_a_reduction_in_front_of_a_function_that_is_not_linear():
    def early(b, v):
        gate = reduced(b, b.call(aten.linear.default, v["x"], v["gate"]))
        return b.call(aten.silu.default, gate)

    def single(b, v):
        return b.call(aten.silu.default, b.call(aten.linear.default, v["x"], v["gate"]))

    shapes = {"x": (T, H), "gate": (INNER, H)}
    right(compared(single, lambda b, v: early(b, cut_input(b, v)), shapes, {"gate": 1}))

    def late(b, v):
        v = cut_input(b, v)
        inner = b.call(aten.linear.default, v["x"], v["gate"])
        return reduced(b, b.call(aten.silu.default, inner))

    wrong(compared(single, late, shapes, {"gate": 1}))


def cut_input(b, v):
    """The columns of x that belong to this rank's part of the weight."""
    width = H // RANKS
    start, end = (numbers(*((r + i) * width for r in range(RANKS))) for i in (0, 1))
    own = b.call(aten.slice.Tensor, v["x"], 1, start, end)
    return {**v, "x": own}


def test_reductions_over_half_of_the_ranks():
    def halved(b, v):
        return b.all_reduce(mlp(b, v), group="half")

    single = graph(mlp, MLP)
    builder = Builder(Mesh({"tp": RANKS}, {"half": [(0, 1), (2, 3)]}))
    inputs = {n: builder.input(n, *s, varies=("tp",)) for n, s in shapes_on_ranks(MLP, CUT).items()}
    report = check_single_device(single, builder.finish(halved(builder, inputs)))
    wrong(report)


BIAS = {**MLP, "b1": (INNER,), "b2": (H,)}


def biased(b, v, last=True):
    inner = b.call(aten.relu.default, b.call(aten.linear.default, v["x"], v["gate"], v["b1"]))
    return b.call(aten.linear.default, inner, v["down"], *([v["b2"]] if last else []))


def test_a_bias_is_added_once():
    cut = {**CUT, "b1": 0}

    def after(b, v):
        return b.call(aten.add.Tensor, reduced(b, biased(b, v, last=False)), v["b2"])

    def divided(b, v):
        part = b.call(aten.div.Tensor, v["b2"], RANKS)
        return reduced(b, biased(b, {**v, "b2": part}))

    right(compared(biased, after, BIAS, cut))
    right(compared(biased, divided, BIAS, cut))
    wrong(compared(biased, lambda b, v: reduced(b, biased(b, v)), BIAS, cut))


FUSED = {"x": (T, H), "both": (2 * INNER, H), "down": (H, INNER)}


def fused(b, v):
    both = b.call(aten.linear.default, v["x"], v["both"])
    halves = b.call(aten.split.Tensor, both, both.meta["val"].shape[1] // 2, 1)
    gate, up = (b.call(operator.getitem, halves, i) for i in (0, 1))
    inner = b.call(aten.mul.Tensor, b.call(aten.silu.default, gate), up)
    return b.call(aten.linear.default, inner, v["down"])


def test_gate_and_up_in_one_matrix():
    cut = {"both": 0, "down": 1}

    def parallel(b, v):
        return reduced(b, fused(b, v))

    derived = compared(fused, parallel, FUSED, cut)
    right(derived)
    assert any("both: S(0) of each of 2 parts" in line for line in derived.premises)
    right(compared(fused, parallel, FUSED, cut, {"both": Packed(0, (INNER, INNER))}))
    plain = tuple(((r * 16, 16),) for r in range(RANKS))
    wrong(compared(fused, parallel, FUSED, cut, {"both": Layout(0, plain, "S(0)")}))


def test_shards_in_another_order():
    def parallel(b, v):
        return reduced(b, mlp(b, v))

    def turned(n, dim):
        k = n // RANKS
        return Layout(dim, tuple((((r + 1) % RANKS * k, k),) for r in range(RANKS)), "turned")

    every = {"gate": turned(INNER, 0), "up": turned(INNER, 0), "down": turned(INNER, 1)}
    right(compared(mlp, parallel, MLP, CUT, every))
    wrong(compared(mlp, parallel, MLP, CUT, {"up": turned(INNER, 0)}))


def test_gathered_columns():
    def single(b, v):
        return b.call(aten.linear.default, v["x"], v["gate"])

    def rows(b, v):
        moved = b.call(aten.transpose.int, single(b, v), 0, 1)
        gathered = b.all_gather(b.call(aten.clone.default, moved))
        return b.call(aten.transpose.int, gathered, 0, 1)

    def misplaced(b, v):
        return b.call(aten.view.default, b.all_gather(single(b, v)), [T, INNER])

    shapes, cut = {"x": (T, H), "gate": (INNER, H)}, {"gate": 0}
    right(compared(single, lambda b, v: columns(b, single(b, v)), shapes, cut))
    right(compared(single, rows, shapes, cut))
    wrong(compared(single, misplaced, shapes, cut))


def test_sequence_parallel_rows():
    def normed(b, v):
        return b.call(aten.layer_norm.default, v["x"], [H])

    def single(b, v):
        return b.call(aten.add.Tensor, mlp(b, v, normed(b, v)), v["x"])

    def parallel(b, v):
        partial = mlp(b, v, b.all_gather(normed(b, v)))
        return b.all_gather(b.call(aten.add.Tensor, b.reduce_scatter(partial), v["x"]))

    def unsummed(b, v):
        partial = mlp(b, v, b.all_gather(normed(b, v)))
        own = b.call(aten.slice.Tensor, partial, 0, 0, T // RANKS)
        return b.all_gather(b.call(aten.add.Tensor, own, v["x"]))

    right(compared(single, parallel, MLP, {**CUT, "x": 0}))
    wrong(compared(single, unsummed, MLP, {**CUT, "x": 0}))


def test_means_and_softmax_of_shards():
    def mean(b, v):
        return b.call(aten.mean.dim, b.call(aten.mul.Tensor, v["x"], v["x"]), [1])

    def softmax(b, v):
        return b.call(aten.softmax.int, v["x"], 1)

    shapes, cut = {"x": (T, H)}, {"x": 1}
    right(compared(mean, lambda b, v: reduced(b, mean(b, v), "avg"), shapes, cut))
    wrong(compared(mean, lambda b, v: reduced(b, mean(b, v)), shapes, cut))
    wrong(compared(mean, mean, shapes, cut))
    wrong(compared(softmax, lambda b, v: columns(b, softmax(b, v)), shapes, cut))


HEADS, DIM = 8, 4


def attention(b, v, grouped=1):
    def heads(name):
        flat = b.call(aten.linear.default, v["x"], v[name])
        count = flat.meta["val"].shape[1] // DIM
        split = b.call(aten.view.default, flat, [1, T, count, DIM])
        return b.call(aten.transpose.int, split, 1, 2)

    q, k, x = heads("q"), heads("k"), heads("v")
    out = b.call(
        aten.scaled_dot_product_attention.default, q, k, x, is_causal=True, enable_gqa=grouped > 1
    )
    back = b.call(aten.clone.default, b.call(aten.transpose.int, out, 1, 2),
                  memory_format=torch.contiguous_format)  # fmt: skip
    return b.call(aten.linear.default, b.call(aten.view.default, back, [T, -1]), v["o"])


@pytest.mark.parametrize("grouped", [1, 2])
def test_attention_by_heads(grouped):
    width, kv = HEADS * DIM, HEADS // grouped * DIM
    shapes = {"x": (T, H), "q": (width, H), "k": (kv, H), "v": (kv, H), "o": (H, width)}
    cut = {"q": 0, "k": 0, "v": 0, "o": 1}

    def parallel(b, v):
        return reduced(b, attention(b, v, grouped))

    def single(b, v):
        return attention(b, v, grouped)

    right(compared(single, parallel, shapes, cut))
    k = kv // RANKS
    turned = Layout(0, tuple((((r + 1) % RANKS * k, k),) for r in range(RANKS)), "turned")
    wrong(compared(single, parallel, shapes, cut, {"k": turned}))
    both = {"k": turned, "v": turned}
    wrong(compared(single, parallel, shapes, cut, both))


def test_inputs_that_do_not_fit():
    single = graph(mlp, MLP)
    ranks = graph(
        mlp, {**shapes_on_ranks(MLP, CUT), "gate": (12, H), "up": (12, H), "down": (H, 12)}, RANKS
    )
    with pytest.raises(PlacementError, match="do not fit"):
        check_single_device(single, ranks)
    with pytest.raises(PlacementError, match="several ranks"):
        check_single_device(ranks, ranks)
    with pytest.raises(PlacementError, match="does not read"):
        check_single_device(single, single, {"nobody": Packed(0, (1,))})


def test_an_input_that_only_ranks_have_proves_nothing():
    def parallel(b, v):
        return b.call(aten.add.Tensor, reduced(b, mlp(b, v)), v["other"])

    ranks = graph(parallel, {**shapes_on_ranks(MLP, CUT), "other": (T, H)}, RANKS)
    report = check_single_device(graph(mlp, MLP), ranks)
    assert not report.verdict.runs
    assert any("nothing on one device corresponds to: other" in p for p in report.premises)


def test_the_first_difference_is_named_in_both_models():
    report = compared(mlp, lambda b, v: b.call(aten.silu.default, mlp(b, v)), MLP, CUT)
    assert "a partial sum that ranks have not added up" in report.explanation
    assert report.verdict is Verdict.NOT_EQUIVALENT


def test_graphs_of_other_outputs_are_invalid():
    builder = Builder(Mesh({"tp": 1}))
    x = builder.input("x", T, H)
    two = builder.finish(x, x)
    report = check_single_device(two, graph(lambda b, v: v["x"], {"x": (T, H)}, RANKS))
    assert report.verdict is Verdict.INVALID


def test_constants_of_the_code_correspond_by_value_alone():
    """One device has no second constant, and calls the first of another shape by its name."""
    single = function(
        '%0 "x": f64[4], %1 "c0": f64[2, 2], %2 "c1": f64[]',
        "%3: f64[4] = aten.add.Tensor(%0, %2)", "return (%3,)", mesh="mesh <tp = 1>",
    )  # fmt: skip
    parallel = function(
        '%0 "x": f64[4], %1 "c0": f64[]', "%2: f64[4] = aten.add.Tensor(%0, %1)", "return (%2,)"
    )
    first = {"c0": torch.zeros(2, 2), "c1": torch.tensor(3.0)}
    right(check_single_device(single, parallel, None, (first, {"c0": torch.tensor(3.0)})))
    wrong(check_single_device(single, parallel, None, (first, {"c0": torch.tensor(2.0)})))


def counting(mesh, more):
    lines = "%1: sym(s0) = aten.sym_size.int(%0, 0)", f"%2: sym(s0 + {more}) = py.add(%1, {more})"
    mesh = f"{mesh}\nsym s0 in [2, 64]"
    return function('%0 "x": f64[s0, 4]', *lines, "return (%0, %2)", mesh=mesh)


def test_numbers_that_models_return_must_agree():
    single, one, two = (counting(f"mesh <tp = {n}>", m) for n, m in ((1, 1), (4, 1), (4, 2)))
    right(check_single_device(single, one))
    report = check_single_device(single, two)
    assert report.verdict is Verdict.INVALID
    assert "size0 + 1 on one device, 1 tensors, size0 + 2 on each rank" in report.explanation


def logits(mesh, width, *lines):
    """Columns of several sequences' logits."""
    return function(
        f'%0 "x": f64[s0, 3, 8], %1 "w": f64[{width}, 8]',
        "%2: sym(s0) = aten.sym_size.int(%0, 0)",
        f"%3: f64[s0, 3, {width}] = aten.linear(%0, %1)",
        *lines,
        mesh=f"{mesh}\nsym s0 in [2, 64]",
    )


def test_gathered_columns_of_several_sequences():
    """n times s sequences are split into n parts, whatever s is."""
    single = logits("mesh <tp = 1>", 8, "return (%3,)")
    for parts, check in (("%6, %7", right), ("%7, %6", wrong)):
        lines = (
            "%4: f64[2*s0, 3, 4] = comm.all_gather(%3) {axis = tp}",
            "%5: (f64[s0, 3, 4], f64[s0, 3, 4]) = aten.split.Tensor(%4, %2)",
            *(f"%{6 + i}: f64[s0, 3, 4] = %5[{i}]" for i in range(2)),
            f"%8: f64[s0, 3, 8] = aten.cat([{parts}], 2)",
        )
        parallel = logits("mesh <tp = 2>", 4, *lines, "return (%8,)")
        check(check_single_device(single, parallel))
