"""Equal map keys are equal maps; what differs between ranks is marked."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from compiler.ir import access
from compiler.ir.rules import BROADCAST, RESHAPE, Call, Meaning, Term, meaning
from tests.compiler.ir.rules import laws
from tests.compiler.ir.rules.laws import counts, masks, meaning_of, operands, reals, sample
from tests.compiler.ir.rules.samples import SAMPLES
from tests.support.graphs import function

aten = torch.ops.aten


def signatures(call: laws.Sample) -> list[tuple[Any, ...]]:
    """Per term of a call of one result, what the checker takes to determine its map."""
    terms, tensors = meaning_of(call).terms, operands(call)
    results = laws.run(call, tensors)
    if terms is None or len(results) != 1:
        return []

    def shapes(indices: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(tensors[i].shape) for i in indices)

    return [
        (t.map, shapes(t.operands), shapes(t.fixed), tuple(results[0].shape))
        for t in terms
        if t.operands and t.map not in (BROADCAST, RESHAPE)
    ]


def apply(call: laws.Sample, term: int, values: dict[int, torch.Tensor]) -> torch.Tensor:
    """One term alone, on other operands: those of all other terms are zero."""
    found = meaning_of(call)
    assert found.terms is not None
    mine = found.terms[term]
    others = {i for t in found.terms for i in t.operands} - set(mine.operands)
    tensors = [values.get(i, torch.zeros_like(x) if i in others else x)
               for i, x in enumerate(operands(call))]  # fmt: skip
    return laws.run(call, tensors)[0] / float(mine.coefficient)


def same_map(a: laws.Sample, b: laws.Sample, i: int, j: int) -> bool:
    """Whether term i of one call and j of another agree on the operands and fixed of the first."""
    left, right = (terms_of(x)[n] for x, n in ((a, i), (b, j)))
    values = operands(a)
    mine = {k: (4 * reals(*values[k].shape)).to(values[k].dtype) for k in left.operands}
    kept = {k: values[k] for k in left.fixed}
    moved = dict(zip(right.operands, mine.values(), strict=True))
    moved |= dict(zip(right.fixed, kept.values(), strict=True))
    moved = {k: x.to(operands(b)[k].dtype) for k, x in moved.items()}
    return laws.close([apply(a, i, mine | kept).double()], [apply(b, j, moved).double()])


def terms_of(call: laws.Sample) -> tuple[Term, ...]:
    found = meaning_of(call).terms
    assert found is not None
    return tuple(found)


def test_samples_with_equal_keys_compute_equal_maps() -> None:
    known: dict[tuple[Any, ...], list[tuple[laws.Sample, int]]] = {}
    for call in SAMPLES:
        numbered = {id(t): n for n, t in enumerate(meaning_of(call).terms or ())}
        opaque = [t for t in meaning_of(call).terms or ()
                  if t.operands and t.map not in (BROADCAST, RESHAPE)]  # fmt: skip
        for term, signature in zip(opaque, signatures(call), strict=False):
            known.setdefault(signature, []).append((call, numbered[id(term)]))
    shared = [calls for calls in known.values() if len(calls) > 1]
    assert len({str(c.target) for calls in shared for c, _ in calls}) > 20
    for calls in shared:
        for (a, i), (b, j) in itertools.combinations(calls, 2):
            assert same_map(a, b, i, j), f"{a} and {b} share a key"


X, Y, SQUARE = reals(4, 4), reals(4, 4), reals(2, 4, 4)
ROWS, MASK = torch.tensor([3, 0, 2, 1]), masks(4, 4)
SHARED = [
    (sample(aten.mm.default, X, Y), sample(aten.matmul.default, X, Y)),
    (sample(aten.mm.default, X, Y), sample(aten.einsum.default, "ij,jk->ik", [X, Y])),
    (sample(aten.linear.default, X, Y), sample(aten.einsum.default, "ij, kj->ik", [X, Y])),
    (sample(aten.bmm.default, SQUARE, SQUARE), sample(aten.matmul.default, SQUARE, SQUARE)),
    (sample(aten.outer.default, X[0], Y[0]), sample(aten.einsum.default, "a,b->ab", [X[0], Y[0]])),
    (sample(aten.div.Tensor, X, Y), sample(aten.true_divide.Tensor, X, Y)),
    (sample(aten.where.ScalarOther, MASK, X, 0), sample(aten.where.self, MASK, X, Y)),
    (sample(aten.transpose.int, X, 0, 1), sample(aten.t.default, X)),
    (sample(aten.sum.dim_IntList, X, [0]), sample(aten.sum.dim_IntList, X, [-2])),
    (sample(aten.sum.dim_IntList, X, [0]), sample(aten.mean.dim, X, [0])),
    (sample(aten.scatter_add.default, X, 0, counts(4, 4), Y),
     sample(aten.scatter_reduce.two, X, 0, counts(4, 4), Y, "sum")),
]  # fmt: skip


@pytest.mark.parametrize(("a", "b"), SHARED, ids=str)
def test_ops_that_share_a_map(a: laws.Sample, b: laws.Sample) -> None:
    assert set(signatures(a)) & set(signatures(b))


DIFFERENT = [
    (sample(aten.mm.default, X, Y), sample(aten.linear.default, X, Y)),
    (sample(aten.mm.default, X, Y), sample(aten.einsum.default, "ij,jk->ki", [X, Y])),
    (sample(aten.outer.default, X[0], Y[0]), sample(aten.einsum.default, "a,b->ba", [X[0], Y[0]])),
    (sample(aten.sum.dim_IntList, X, [0]), sample(aten.sum.dim_IntList, X, [1])),
    (sample(aten.cumsum.default, X, 0), sample(aten.cumsum.default, X, 1)),
    (sample(aten.permute.default, SQUARE, [0, 2, 1]),
     sample(aten.permute.default, SQUARE, [0, 1, 2])),
    (sample(aten.slice.Tensor, X, 0, 0, 2), sample(aten.slice.Tensor, X, 0, 2, 4)),
    (sample(aten.slice.Tensor, X, 0, 0, 4, 2), sample(aten.slice.Tensor, X, 0, 0, 2)),
    (sample(aten.select.int, X, 0, 0), sample(aten.select.int, X, 1, 0)),
    (sample(aten.index_select.default, X, 0, ROWS), sample(aten.index_select.default, X, 1, ROWS)),
    (sample(aten.gather.default, X, 0, counts(4, 4)),
     sample(aten.gather.default, X, 1, counts(4, 4))),
    (sample(aten.index.Tensor, X, [ROWS]), sample(aten.index.Tensor, X, [None, ROWS])),
    (sample(aten.scatter.value, X, 0, counts(4, 4), 0),
     sample(aten.scatter.value, X, 1, counts(4, 4), 0)),
    (sample(aten.where.ScalarOther, MASK, X, 0), sample(aten.masked_fill.Scalar, X, MASK, 0)),
    (sample(aten.constant_pad_nd.default, X, [0, 1]),
     sample(aten.constant_pad_nd.default, X, [1, 0])),
    (sample(aten.tril.default, X), sample(aten.tril.default, X, 1)),
    (sample(aten.tril.default, X), sample(aten.triu.default, X)),
    (sample(aten.flip.default, X, [0]), sample(aten.flip.default, X, [1])),
    (sample(aten.roll.default, X, [1], [0]), sample(aten.roll.default, X, [2], [0])),
    (sample(aten.repeat.default, X, [2, 2]), sample(aten.tile.default, X, [2, 2])),
]  # fmt: skip


@pytest.mark.parametrize(("a", "b"), DIFFERENT, ids=str)
def test_maps_that_differ(a: laws.Sample, b: laws.Sample) -> None:
    assert not set(signatures(a)) & set(signatures(b))


def test_calls_hold_no_symbolic_numbers() -> None:
    graph = function('%0 "x": f64[s, 8] {tp: R}', "%1: sym(s) = aten.sym_size.int(%0, 0)",
                     "%2: f64[s, 8] = aten.narrow(%0, 0, 0, %1)", "return %2",
                     mesh="mesh <tp = 4>\nsym s in [2, 4096]")  # fmt: skip
    node = next(n for n in graph.graph.nodes if n.target is aten.narrow.default)
    assert isinstance(access.arguments(node)["length"], torch.SymInt)
    assert Call.of(node).arguments["length"] == "s"


def test_operands_of_one_join_have_maps_of_their_own() -> None:
    for op in (aten.cat.default, aten.stack.default):
        first, second = signatures(sample(op, [X, Y]))
        assert first != second


@pytest.mark.parametrize(
    "build",
    [
        lambda n: sample(aten.slice.Tensor, X, 0, n, 4),
        lambda n: sample(aten.select.int, X, 0, n),
        lambda n: sample(aten.mul.Tensor, X, n),
        lambda n: sample(aten.add.Tensor, X, Y, alpha=n),
    ],
)
def test_numbers_of_the_rank(build: Callable[[int], laws.Sample]) -> None:
    """A number that differs between ranks keeps no partial sums, and is not its value."""
    plain, ranked = build(2), build(access.RankInt(2, (1, 2)))
    found = meaning_of(ranked)
    assert found.rank_dependent
    assert not meaning_of(plain).rank_dependent
    for partial in laws.placements(len(operands(ranked))):
        assert not laws.keeps_partial(found, partial)
    assert not set(signatures(plain)) & set(signatures(ranked))


def test_an_op_without_a_rule_has_no_meaning() -> None:
    assert meaning(laws.node(sample(aten.as_strided.default, X, [2], [1]))) is None


def test_what_is_read() -> None:
    first, second = Term((2, 0), fixed=(3,)), Term((0,))
    assert (first.reads, second.reads, Term(()).reads) == ((2, 0, 3), (0,), ())
    assert Meaning(terms=(first, second)).reads == {0, 2, 3}
    assert Meaning(terms=()).reads == frozenset()  # a constant
    assert Meaning().reads is None


def test_elements_that_are_not_read_do_not_matter() -> None:
    unread = 0
    for call in SAMPLES:
        reads, tensors = meaning_of(call).reads, operands(call)
        if reads is None or meaning_of(call).random or len(reads) == len(tensors):
            continue
        zeroed = [x if i in reads else torch.zeros_like(x) for i, x in enumerate(tensors)]
        assert laws.close(laws.run(call, tensors), laws.run(call, zeroed)), call
        unread += 1
    assert unread > 5
