"""Tables that are cut, read by an index: embeddings by words, weights by experts."""

from __future__ import annotations

import operator

import numpy as np
import pytest
import torch

from compiler.check import algebra
from compiler.check.single_device.cases import Index, Indices, constant, decision, span
from compiler.ir.mesh import Mesh
from compiler.ir.rules import Call
from tests.compiler.check.single_device.twins import (
    RANKS,
    aten,
    compared,
    numbers,
    reduced,
    right,
    wrong,
)
from tests.support.graphs import Builder

WORDS, H, T = 16, 8, 6
TABLE = {"ids": (T,), "table": (WORDS, H)}
OWN = WORDS // RANKS
OFFSETS = tuple(r * OWN for r in range(RANKS))


def embedded(b, v):
    return b.call(aten.embedding.default, v["table"], v["ids"])


def by_words(b, v, offsets=OFFSETS, size=OWN, scale=None, masked=True, low=0):
    local = b.call(aten.sub.Tensor, v["ids"], numbers(*offsets))
    above = b.call(aten.ge.Scalar, local, low)
    own = b.call(aten.__and__.Tensor, above, b.call(aten.lt.Scalar, local, size))
    rows = b.call(aten.embedding.default, v["table"], b.call(aten.where.ScalarOther, own, local, 0))
    if scale is not None:
        rows = b.call(aten.mul.Tensor, rows, scale)
    if not masked:
        return rows
    return b.call(aten.where.ScalarOther, b.call(aten.unsqueeze.default, own, -1), rows, 0.0)


def test_an_embedding_cut_by_words():
    report = compared(embedded, lambda b, v: reduced(b, by_words(b, v)), TABLE, {"table": 0})
    right(report)
    assert any("0 <= %ids < 16" in line for line in report.premises)


def test_scaled_before_the_mask():
    def single(b, v):
        return b.call(aten.mul.Tensor, embedded(b, v), 3.0)

    def parallel(b, v):
        return reduced(b, by_words(b, v, scale=3.0))

    right(compared(single, parallel, TABLE, {"table": 0}))


@pytest.mark.parametrize(
    "options",
    [
        {"size": OWN - 1},
        {"offsets": (*OFFSETS[1:], OFFSETS[0])},
        {"offsets": (0,) * RANKS},
        {"masked": False},
        {"low": 1},
    ],
    ids=["narrow mask", "offsets of other ranks", "one offset", "no mask", "first word left out"],
)
def test_wrong_masks(options):
    def parallel(b, v):
        return reduced(b, by_words(b, v, **options))

    wrong(compared(embedded, parallel, TABLE, {"table": 0}))


def test_words_that_are_not_added_up():
    wrong(compared(embedded, by_words, TABLE, {"table": 0}))


def test_a_mask_by_multiplication_and_one_by_writing():
    def multiplied(b, v):
        local = b.call(aten.sub.Tensor, v["ids"], numbers(*OFFSETS))
        inside = b.call(aten.lt.Scalar, local, OWN)
        own = b.call(aten.logical_and.default, b.call(aten.ge.Scalar, local, 0), inside)
        index = b.call(aten.clamp.default, local, 0, OWN - 1)
        rows = b.call(aten.embedding.default, v["table"], index)
        mask = b.call(aten._to_copy.default, own, dtype=torch.float64)
        return reduced(b, b.call(aten.mul.Tensor, rows, b.call(aten.unsqueeze.default, mask, -1)))

    def written(b, v):
        below = b.call(aten.lt.Scalar, v["ids"], numbers(*OFFSETS))
        above = b.call(aten.ge.Scalar, v["ids"], numbers(*(o + OWN for o in OFFSETS)))
        foreign = b.call(aten.__or__.Tensor, below, above)
        local = b.call(aten.sub.Tensor, v["ids"], numbers(*OFFSETS))
        index = b.call(aten.masked_fill.Scalar, local, foreign, 0)
        rows = b.call(aten.embedding.default, v["table"], index)
        mask = b.call(aten.unsqueeze.default, foreign, -1)
        return reduced(b, b.call(aten.masked_fill.Scalar, rows, mask, 0.0))

    right(compared(embedded, multiplied, TABLE, {"table": 0}))
    right(compared(embedded, written, TABLE, {"table": 0}))


EXPERTS, INNER, CHOSEN = 8, 4, 2
MOE = {
    "x": (T, H), "router": (EXPERTS, H), "up": (EXPERTS, INNER, H), "down": (EXPERTS, H, INNER),
}  # fmt: skip
LOCAL = EXPERTS // RANKS
FIRST = tuple(r * LOCAL for r in range(RANKS))


def routed(b, v, first=None, local=LOCAL, masked=True, narrow=False):
    """Experts of every token, added up; ``first``: those of each rank begin there."""
    scores = b.call(aten.sigmoid.default, b.call(aten.linear.default, v["x"], v["router"]))
    ids = b.call(operator.getitem, b.call(aten.topk.default, scores, CHOSEN), 1)
    weights = b.call(aten.gather.default, scores, -1, ids)
    own = None
    if first is not None:
        ids = b.call(aten.sub.Tensor, ids, numbers(*first))
        inside = b.call(aten.lt.Scalar, ids, local)
        own = b.call(aten.__and__.Tensor, b.call(aten.ge.Scalar, ids, 0), inside)
        ids = b.call(aten.where.ScalarOther, own, ids, LOCAL)
    if narrow:
        ids = b.call(aten._to_copy.default, ids, dtype=torch.int32)
    count = v["up"].meta["val"].shape[0]
    each = b.call(aten.clamp.default, b.call(aten.view.default, ids, [T * CHOSEN]), None, count - 1)
    rows = b.call(aten.repeat_interleave.self_int, v["x"], CHOSEN, 0)

    def times(name, x):
        matrices = b.call(aten.index.Tensor, v[name], [each])
        product = b.call(aten.bmm.default, matrices, b.call(aten.unsqueeze.default, x, -1))
        return b.call(aten.squeeze.dim, product, -1)

    out = times("down", b.call(aten.silu.default, times("up", rows)))
    if own is not None and masked:
        mask = b.call(aten.view.default, own, [T * CHOSEN, 1])
        out = b.call(aten.where.ScalarOther, mask, out, 0.0)
    out = b.call(aten.view.default, out, [T, CHOSEN, H])
    weighted = b.call(aten.mul.Tensor, out, b.call(aten.unsqueeze.default, weights, -1))
    return b.call(aten.sum.dim_IntList, weighted, [1])


DEALT = {"up": 0, "down": 0}


def test_experts_dealt_out():
    report = compared(routed, lambda b, v: reduced(b, routed(b, v, FIRST)), MOE, DEALT)
    right(report)
    assert not any("<" in line for line in report.premises), "topk says how large they are"


def test_experts_dealt_out_and_told_apart_on_one_device_too():
    def single(b, v):
        return routed(b, v, (0,), EXPERTS, narrow=True)

    right(compared(single, lambda b, v: reduced(b, routed(b, v, FIRST, narrow=True)), MOE, DEALT))
    off_by_one = tuple(x + 1 for x in FIRST)
    wrong(compared(single, lambda b, v: reduced(b, routed(b, v, off_by_one)), MOE, DEALT))


@pytest.mark.parametrize(("inside", "result"), [((0, 288), ("operand", 0)), ((0, 1 << 32), None)])
def test_whole_numbers_in_a_type_that_holds_them(inside, result):
    b = Builder(Mesh({"tp": 1}))
    ids = b.input("ids", 4, dtype=torch.int64)
    narrow = b.call(aten._to_copy.default, ids, dtype=torch.int32)
    assert decision(Call.of(narrow), [inside], 0) == result


def test_experts_sliced():
    cut = {"up": 1, "down": 2}
    right(compared(routed, lambda b, v: reduced(b, routed(b, v)), MOE, cut))
    wrong(compared(routed, routed, MOE, cut))


@pytest.mark.parametrize(
    "options",
    [
        {"masked": False},
        {"first": (*FIRST[1:], FIRST[0])},
        {"local": LOCAL - 1},
        {"local": LOCAL + 1},
        {"first": tuple(n + 1 for n in FIRST)},
    ],
    ids=["no mask", "other ranks", "one too few", "one too many", "one further"],
)
def test_experts_dealt_out_wrongly(options):
    def parallel(b, v):
        return reduced(b, routed(b, v, **{"first": FIRST, **options}))

    wrong(compared(routed, parallel, MOE, DEALT))


def test_experts_of_which_each_rank_returns_its_own():
    wrong(compared(routed, lambda b, v: routed(b, v, FIRST), MOE, DEALT))


# -- what is read off the model --------------------------------------------------------------------


def vector(name):
    return algebra.random_vectors([[name.encode()]])[0, 0]


def plus(x, number):
    return (x + algebra.constant(number)[0, 0]) % algebra.P


def test_constants_and_indices_are_read_off_their_vectors():
    index = Index(0, vector("ids"), ((0, 4), (4, 8)))
    assert [constant(plus(np.zeros_like(index.data), n)) for n in (0, 5, -3)] == [0, 5, -3]
    assert constant(index.data) is None
    assert span(plus(index.data, -4), index, (4, 8)) == (0, 4)
    assert span(plus(np.zeros_like(index.data), 7), index, (4, 8)) == (7, 8)
    assert span(vector("other"), index, (4, 8)) is None


def test_an_index_is_known_by_its_vector_up_to_a_number():
    indices = Indices()
    index = indices.add(vector("ids"), ((0, 4),))
    shifted = np.stack([plus(index.data, -r) for r in range(3)])[:, None]
    assert indices.of(shifted) is index
    assert indices.of(vector("other")[None, None]) is None
    assert indices.add(plus(index.data, 2), ((0, 9),)) is index


INTEGER = torch.int64


def call(op, *args, integers=1, dtype=INTEGER):
    b = Builder(Mesh({"tp": 1}))
    read = [b.input(f"i{i}", 4, dtype=dtype) for i in range(integers)]
    return Call.of(b.call(op, *read, *args))


@pytest.mark.parametrize(
    ("op", "number", "inside", "result"),
    [
        (aten.ge.Scalar, 0, (0, 4), ("constant", 1)),
        (aten.ge.Scalar, 0, (-4, 0), ("constant", 0)),
        (aten.ge.Scalar, 1, (0, 4), None),
        (aten.gt.Scalar, 3, (4, 9), ("constant", 1)),
        (aten.gt.Scalar, 4, (4, 9), None),
        (aten.lt.Scalar, 4, (0, 4), ("constant", 1)),
        (aten.lt.Scalar, 3, (0, 4), None),
        (aten.le.Scalar, 3, (0, 4), ("constant", 1)),
        (aten.le.Scalar, 2, (0, 4), None),
        (aten.eq.Scalar, 2, (2, 3), ("constant", 1)),
        (aten.eq.Scalar, 2, (3, 9), ("constant", 0)),
        (aten.eq.Scalar, 2, (2, 4), None),
        (aten.ne.Scalar, 2, (3, 9), ("constant", 1)),
        (aten.clamp_max.default, 3, (0, 4), ("operand", 0)),
        (aten.clamp_max.default, 2, (0, 4), None),
        (aten.clamp_max.default, 2, (2, 9), ("constant", 2)),
        (aten.clamp_min.default, 0, (0, 4), ("operand", 0)),
        (aten.clamp_min.default, 5, (0, 4), ("constant", 5)),
        (aten.floor_divide.default, 4, (4, 8), ("constant", 1)),
        (aten.floor_divide.default, 4, (-4, 0), ("constant", -1)),
        (aten.floor_divide.default, 4, (3, 5), None),
        (aten.remainder.Scalar, 4, (4, 8), ("shifted", 4)),
        (aten.remainder.Scalar, 4, (4, 9), None),
    ],
)  # fmt: skip
def test_what_an_interval_decides(op, number, inside, result):
    one = call(op, number)
    assert decision(one, [inside], 0) == result
    values = torch.arange(*inside)
    computed = op(values, number).long()
    if result is not None:
        kind, n = result
        expected = {
            "constant": torch.full_like(values, n),
            "operand": values,
            "shifted": values - n,
        }
        assert torch.equal(computed, expected[kind])


@pytest.mark.parametrize(
    ("op", "sides", "result"),
    [
        (aten.logical_and.default, ((0, 1), None), ("constant", 0)),
        (aten.logical_and.default, ((1, 2), (1, 2)), ("constant", 1)),
        (aten.logical_and.default, ((1, 2), None), None),
        (aten.logical_or.default, ((1, 2), None), ("constant", 1)),
        (aten.logical_or.default, ((0, 1), (0, 1)), ("constant", 0)),
        (aten.logical_or.default, ((0, 1), None), None),
    ],
)
def test_what_one_side_decides(op, sides, result):
    assert decision(call(op, integers=2, dtype=torch.bool), list(sides), 0) == result


def test_an_integer_is_not_taken_for_a_truth_value():
    bits = call(aten.bitwise_and.Tensor, integers=2)
    assert decision(bits, [(0, 1), (1, 2)], 0) is None
