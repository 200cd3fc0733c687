"""Every rule against the kernel it speaks of, on every sample."""

from __future__ import annotations

import pytest

from compiler.ir.rules import RULES
from tests.compiler.ir.rules import laws
from tests.compiler.ir.rules.samples import RANDOM, SAMPLES, UNSAMPLED


@pytest.fixture(autouse=True)
def _same_splits_in_every_order() -> None:
    laws.GENERATOR.manual_seed(0)


EVERY = pytest.mark.parametrize("call", SAMPLES, ids=str)


def test_every_op_is_sampled_or_excused() -> None:
    sampled = {x.target for x in (*SAMPLES, *RANDOM)}
    assert sampled | set(UNSAMPLED) == set(RULES)
    assert not sampled & set(UNSAMPLED)


@EVERY
def test_terms(call: laws.Sample) -> None:
    found = laws.meaning_of(call)
    if found.terms is not None:
        assert laws.follows_terms(call, found)


@EVERY
def test_partial_sums(call: laws.Sample) -> None:
    """What ``keeps_partial`` accepts adds up; what it refuses does not, or has an excuse."""
    found, excused = laws.meaning_of(call), False
    for partial in laws.placements(len(laws.operands(call))):
        kept = found.keeps_partial(partial, [not p for p in partial])
        adds_up = laws.adds_up(call, partial)
        assert adds_up or not kept, f"accepts {partial}"
        if adds_up and not kept:
            excused = True
            assert call.refuses, f"refuses {partial} for no reason"
    assert excused or not call.refuses, "the excuse is void"


@EVERY
def test_factors(call: laws.Sample) -> None:
    found = laws.meaning_of(call)
    if found.dims is None:
        return
    assert len(found.dims.operands) == len(laws.operands(call))
    known = set(laws.labels(found))
    assert {x for held in found.dims.results for x in held if x is not None} <= known
    for label in known:
        for count in laws.counts_of(call, found, label):
            assert laws.factors(call, found, label, count), f"cut {label!r} in {count}"


@EVERY
def test_whole_dimensions(call: laws.Sample) -> None:
    """A dimension without a factor cannot be cut alone, or there is an excuse."""
    found = laws.meaning_of(call)
    cut = [x for x in laws.whole_dims(call, found) if laws.works_in_blocks(call, found, *x)]
    assert bool(cut) == bool(call.holds), f"cut {cut}, excuse {call.holds!r}"


@pytest.mark.parametrize("call", RANDOM, ids=str)
def test_random(call: laws.Sample) -> None:
    found = laws.meaning_of(call)
    assert found.random
    assert not any(found.keeps_partial(p, [not x for x in p])
                   for p in laws.placements(len(laws.operands(call))))  # fmt: skip


@EVERY
def test_selections(call: laws.Sample) -> None:
    """A selection distributes over the reductions it says, and over no other combination."""
    found = laws.meaning_of(call).selection
    if found is None:
        return
    dtype = laws.run(call, laws.operands(call))[0].dtype
    for kind in laws.REDUCTIONS:
        held = laws.distributes(call, found, kind)
        assert held or not found.distributes(kind, dtype), kind
        assert not held or found.combine in ("", kind), kind
