"""Interpretation against simulation, on random graphs and mutants of them."""

from __future__ import annotations

import random
from collections import Counter

from passes import EliminateDeadCode
from scripts.mutate import MUTATIONS, ROUNDING, NothingToBreakError, Outcome, Pair, judged, mutant
from tests.support.random_graphs import seeded
from tests.support.seeds import share


def test_what_the_checker_accepts_simulates_alike_and_what_simulates_otherwise_is_refuted() -> None:
    found: Counter[Outcome] = Counter()
    accepted, graphs = 0, share(250)
    for seed in range(graphs):
        source, rng = EliminateDeadCode().apply(seeded(seed)).graph, random.Random(seed)
        pair = Pair(f"random graph {seed}", source, source, bound=4)
        for name in rng.sample(list(MUTATIONS), 2):
            try:
                target = mutant(source, name, rng)
            except NothingToBreakError:
                continue
            outcome, report, _ = judged(pair, target, exact=name not in ROUNDING)
            found[outcome] += 1
            accepted += report.verdict.runs
            assert outcome not in (Outcome.ACCEPTED, Outcome.REFUTED), (seed, report)
    assert accepted > 0.04 * graphs, (accepted, found)
    assert found[Outcome.NOT_EQUIVALENT] > 0.6 * graphs, found
    assert found[Outcome.UNPROVED] < 0.08 * graphs, found
