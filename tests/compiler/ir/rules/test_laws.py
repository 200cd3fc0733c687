"""Every rule against the kernel it speaks of, on every sample."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compiler.ir.rules import RULES
from tests.compiler.ir.rules import claims, laws
from tests.compiler.ir.rules.samples import RANDOM, SAMPLES, UNSAMPLED

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def _same_splits_in_every_order() -> None:
    laws.GENERATOR.manual_seed(0)


EVERY = pytest.mark.parametrize("call", SAMPLES, ids=str)


def test_every_op_is_sampled_or_excused() -> None:
    sampled = {x.target for x in (*SAMPLES, *RANDOM)}
    assert sampled | set(UNSAMPLED) == set(RULES)
    assert not sampled & set(UNSAMPLED)


@EVERY
def test_what_is_claimed_holds(call: laws.Sample) -> None:
    assert not claims.accepted(call, laws.meaning_of(call))


@EVERY
def test_partial_sums_are_refused_for_a_reason(call: laws.Sample) -> None:
    """What is refused does not add up, or has an excuse, which is not void."""
    found = list(claims.refused_sums(call, laws.meaning_of(call)))
    assert bool(found) == bool(call.refuses), f"{found}, excuse {call.refuses!r}"


@EVERY
def test_dimensions_are_whole_for_a_reason(call: laws.Sample) -> None:
    found = list(claims.whole_dims(call, laws.meaning_of(call)))
    assert bool(found) == bool(call.holds), f"{found}, excuse {call.holds!r}"


ALIGNED = {getattr(aten, "_grouped_mm", aten.mm).default}
"""Kernels that want rows of so many bytes: test_contraction draws their sizes."""


@pytest.mark.parametrize("call", [x for x in SAMPLES if x.target not in ALIGNED], ids=str)
@settings(max_examples=3, deadline=None, database=None, derandomize=True,
          suppress_health_check=list(HealthCheck))  # fmt: skip
@given(data=st.data())
def test_drawn_sizes(call: laws.Sample, data: st.DataObject) -> None:
    """The claims hold whatever the sizes of the factors are."""
    found = laws.meaning_of(call)
    if found.dims is None:
        return
    counts = {x: data.draw(st.integers(1, 5), str(x)) for x in laws.labels(found)}
    larger = claims.resized(call, found, counts)
    assert not claims.accepted(larger, laws.meaning_of(larger))


@pytest.mark.parametrize("call", RANDOM, ids=str)
def test_random(call: laws.Sample) -> None:
    found = laws.meaning_of(call)
    assert found.random
    assert not any(laws.keeps_partial(found, p)
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
