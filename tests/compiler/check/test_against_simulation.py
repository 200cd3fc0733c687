"""Interpretation against simulation, on random graphs and mutants of them."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compiler.ir.graph import SpmdGraph
from passes import EliminateDeadCode
from scripts.mutate import MUTATIONS, ROUNDING, NothingToBreakError, Outcome, Pair, judged, mutant
from tests.compiler.check.verdicts import verdict
from tests.graphs import agree
from tests.random_graphs import random_graph, seeded


@st.composite
def graphs(draw: st.DrawFn, count: int) -> SpmdGraph:
    return random_graph(lambda options: draw(st.sampled_from(options)), count)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(graphs(7), st.sampled_from(list(MUTATIONS)), st.integers(0, 99))
def test_no_mutant_that_computes_something_else_is_accepted(
    source: SpmdGraph, mutation: str, seed: int
) -> None:
    try:
        target = mutant(source, mutation, random.Random(seed))
    except NothingToBreakError:
        return
    if verdict(source, target).runs:
        assert agree(source, target, seeds=(seed, seed + 100))


def test_what_the_checker_accepts_simulates_alike_and_what_simulates_otherwise_is_refuted() -> None:
    found: Counter[Outcome] = Counter()
    for seed in range(250):
        source, rng = EliminateDeadCode().apply(seeded(seed)).graph, random.Random(seed)
        pair = Pair(f"random graph {seed}", source, source, bound=4)
        for name in rng.sample(list(MUTATIONS), 2):
            try:
                target = mutant(source, name, rng)
            except NothingToBreakError:
                continue
            outcome, report, _ = judged(pair, target, exact=name not in ROUNDING)
            found[outcome] += 1
            assert outcome not in (Outcome.ACCEPTED, Outcome.REFUTED), (seed, report)
    assert found[Outcome.NOT_EQUIVALENT] > 150, found
    assert found[Outcome.UNPROVED] < 20, found
