"""Seeded mistakes are mistakes: each changes what the model computes."""

from __future__ import annotations

import operator
from collections import Counter

from compiler.check import Verdict
from compiler.check.single_device import check_single_device
from compiler.check.single_device.compare import layouts_of
from scripts.parallel_mistakes import EDITS, drawn, mistakes, rewrites
from tests.compiler.check.single_device.twins import (
    RANKS,
    aten,
    columns,
    graph,
    numbers,
    reduced,
    shapes_on_ranks,
)

T, H, WORDS = 4, 8, 16
SHAPES = {
    "ids": (T,),
    "table": (WORDS, H),
    "up": (2 * WORDS, H),
    "down": (H, WORDS),
    "head": (WORDS, H),
    "x": (H,),
}
CUT = {"table": 0, "up": 0, "down": 1, "head": 0}


def model(b, v):
    """Words cut, gate and up in one matrix, a residual, logits gathered."""
    ranks = b.mesh.size
    if ranks == 1:
        x = b.call(aten.embedding.default, v["table"], v["ids"])
    else:
        own = WORDS // ranks
        local = b.call(aten.sub.Tensor, v["ids"], numbers(*(r * own for r in range(ranks))))
        inside = b.call(aten.lt.Scalar, local, own)
        mask = b.call(aten.__and__.Tensor, b.call(aten.ge.Scalar, local, 0), inside)
        index = b.call(aten.where.ScalarOther, mask, local, 0)
        rows = b.call(aten.embedding.default, v["table"], index)
        mask = b.call(aten.unsqueeze.default, mask, -1)
        x = reduced(b, b.call(aten.where.ScalarOther, mask, rows, 0.0))
    both = b.call(aten.linear.default, x, v["up"])
    width = both.meta["val"].shape[1] // 2
    parts = b.call(aten.split.Tensor, both, width, 1)
    gate, up = (b.call(operator.getitem, parts, i) for i in (0, 1))
    inner = b.call(aten.mul.Tensor, b.call(aten.silu.default, gate), up)
    y = b.call(aten.linear.default, inner, v["down"])
    x = b.call(aten.add.Tensor, x, reduced(b, y) if ranks > 1 else y)
    x = b.call(aten.add.Tensor, x, v["x"])
    logits = b.call(aten.linear.default, x, v["head"])
    return columns(b, logits) if ranks > 1 else logits


def test_every_mistake_is_refuted_by_simulation():
    single, parallel = graph(model, SHAPES), graph(model, shapes_on_ranks(SHAPES, CUT), RANKS)
    assert check_single_device(single, parallel).verdict is Verdict.EQUIVALENT
    kinds = Counter()
    for one in drawn(mistakes(parallel, layouts_of(single, parallel)), 0):
        wrong = one.graph()
        if wrong is None:
            continue
        kinds[one.kind] += 1
        report = check_single_device(single, wrong, one.layouts)
        assert report.verdict is Verdict.NOT_EQUIVALENT, (one.kind, one.where, report.explanation)
    assert set(kinds) == {*EDITS, "shards in another order", "parts sharded as one"}


def test_what_is_written_otherwise_is_still_proved():
    single, parallel = graph(model, SHAPES), graph(model, shapes_on_ranks(SHAPES, CUT), RANKS)
    kinds = Counter()
    for one in rewrites(parallel):
        if (other := one.graph()) is not None:
            kinds[one.kind] += 1
            assert check_single_device(single, other).verdict is Verdict.EQUIVALENT, one.kind
    assert kinds == {"replicated term shared": 1, "mean of multiples": 2}


def test_the_right_graph_stays_as_it_is():
    parallel = graph(model, shapes_on_ranks(SHAPES, CUT), RANKS)
    before = str(parallel.graph)
    for one in (*mistakes(parallel, {}), *rewrites(parallel)):
        one.graph()
    assert str(parallel.graph) == before


def test_the_first_mistakes_drawn_are_of_all_kinds():
    parallel = graph(model, shapes_on_ranks(SHAPES, CUT), RANKS)
    every = mistakes(parallel, layouts_of(graph(model, SHAPES), parallel))
    kinds = {one.kind for one in every}
    first = drawn(every, 0)
    assert {one.kind for one in first[: len(kinds)]} == kinds
    assert len(first) == len(every)
