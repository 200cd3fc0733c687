"""Batches of seeded mutants and of random graphs, and what is counted of them."""

from __future__ import annotations

import random
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from compiler.analysis.statistics import statistics
from compiler.check import Verdict
from compiler.ir.graph import SpmdGraph
from compiler.ir.text import print_graph
from scripts.mutate import (
    MUTATIONS,
    ROUNDING,
    NothingToBreakError,
    Outcome,
    Pair,
    by_hand,
    judged,
    mutant,
    pairs,
)
from tests.support.random_graphs import anyhow

POOL = 12
"""Random pairs of a batch of mutants, beside the models and the graphs made by hand."""

WRONG = (Outcome.ACCEPTED, Outcome.REFUTED)


@dataclass(frozen=True)
class Finding:
    """Something that must not be, with all that reproduces it.

    Attributes:
        title: what happened, in which batch.
        explanation: the checker's words and the simulated difference.
        graphs: role (source, target, mutant) -> text form.
    """

    title: str
    explanation: str
    graphs: Mapping[str, str]


@dataclass
class Tally:
    """Counts of one batch or of several.

    Attributes:
        counts: (what, outcome) -> how many.
        findings: what must not be.
        seconds: processor time.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, other: Tally) -> None:
        """Add the counts of another batch."""
        self.counts += other.counts
        self.findings += other.findings
        self.seconds += other.seconds

    def found(self, title: str, explanation: str, **graphs: SpmdGraph) -> None:
        """Note something that must not be."""
        texts = {role: print_graph(graph) for role, graph in graphs.items()}
        self.findings.append(Finding(title, explanation, texts))


@lru_cache(maxsize=1)
def _lasting(texts: tuple[tuple[str, str], ...]) -> tuple[Pair, ...]:
    """The pairs that all batches share."""
    return (*pairs.pairs_by_hand(), *(pairs.pair_of_text(*item) for item in texts))


def mutants(seed: int, count: int, models: Mapping[str, str]) -> Tally:
    """Break graphs until ``count`` mutants are not the same function.

    Args:
        seed: decides everything.
        count: mutants, in turn of every kind.
        models: name -> text of further sources.
    """
    started, tally, rng = time.process_time(), Tally(), random.Random(seed)
    pool = [*_lasting(tuple(models.items())), *_random_pairs(rng, tally)]
    names = rng.sample(list(MUTATIONS), len(MUTATIONS))
    broken = turn = 0
    while broken < count:
        name = names[turn % len(names)]
        turn += 1
        for pair, wrong in _first(pool, name, rng):
            broken += _judge(tally, f"seed {seed}: {name} in {pair.name}", name, pair, wrong)
    tally.seconds = time.process_time() - started
    return tally


def _judge(tally: Tally, title: str, name: str, pair: Pair, wrong: SpmdGraph) -> bool:
    """Count a mutant; whether it is not the same function."""
    graphs = {"source": pair.source, "target": pair.target, "mutant": wrong}
    try:
        outcome, report, difference = judged(pair, wrong, exact=name not in ROUNDING)
    except Exception:
        tally.found(f"{title}: crashed", traceback.format_exc(), **graphs)
        return True
    tally.counts[name, outcome] += 1
    if outcome is Outcome.EQUAL and report.verdict.runs:
        tally.counts[name, "proved equal"] += 1
    if outcome in WRONG:
        explanation = f"{report.explanation}\nsimulation: {difference}"
        tally.found(f"{title}: {outcome}", explanation, **graphs)
    return outcome is not Outcome.EQUAL


def _random_pairs(rng: random.Random, tally: Tally) -> Iterator[Pair]:
    """Random graphs and what the optimizer makes of them, which must be right itself."""
    for i in range(POOL):
        pair = (by_hand.by_hand if i % 3 == 2 else pairs.random_pair)(rng.getrandbits(32))
        if difference := pair.judge.difference(pair.target):
            graphs = {"source": pair.source, "target": pair.target}
            tally.found(f"{pair.name}: mis-optimized", difference, **graphs)
        else:
            yield pair


def _first(pool: list[Pair], name: str, rng: random.Random) -> Iterator[tuple[Pair, SpmdGraph]]:
    """A mutant of the first graph, in random order, that has a place for the mutation."""
    for pair in rng.sample(pool, len(pool)):
        try:
            yield pair, mutant(pair.target, name, rng)
        except NothingToBreakError:
            continue
        return


def random_graphs(first: int, count: int) -> Tally:
    """Optimize random graphs of the seeds from ``first`` on through random orders of passes."""
    started, tally = time.process_time(), Tally()
    for seed in range(first, first + count):
        source = anyhow(seed)
        try:
            target = pairs.in_random_order(source, random.Random(seed))
        except Exception:
            tally.counts["graphs", "crashed"] += 1
            tally.found(f"random graph {seed}: crashed", traceback.format_exc(), source=source)
            continue
        pair = Pair(f"random graph {seed}", source, target, pairs.INDICES, pairs.TOKENS)
        _, report, difference = judged(pair, target)
        wrong = "mis-optimized" if difference else "" if report.verdict.runs else "refused"
        tally.counts["graphs", wrong or str(report.verdict)] += 1
        if wrong:
            why = f"{report.verdict}: {report.explanation}\nsimulation: {difference}"
            tally.found(f"{pair.name}: {wrong}", why, source=source, target=target)
        _count_collectives(tally, source, target, moved=report.verdict is Verdict.EQUIVALENT)
    tally.seconds = time.process_time() - started
    return tally


def rewritten_by_hand(first: int, count: int) -> Tally:
    """Judge right rewrites that neither planner nor passes make, of the seeds from ``first`` on."""
    started, tally = time.process_time(), Tally()
    for seed in range(first, first + count):
        pair = by_hand.by_hand(seed)
        graphs = {"source": pair.source, "target": pair.target}
        try:
            _, report, difference = judged(pair, pair.target)
        except Exception:
            tally.found(f"{pair.name}: crashed", traceback.format_exc(), **graphs)
            continue
        form = pair.name.split()[0]
        tally.counts[form, str(report.verdict)] += 1
        if difference or report.verdict is Verdict.NOT_EQUIVALENT:
            why = f"{report.verdict}: {report.explanation}\nsimulation: {difference}"
            tally.found(f"{pair.name}: refuted", why, **graphs)
    tally.seconds = time.process_time() - started
    return tally


def _count_collectives(tally: Tally, source: SpmdGraph, target: SpmdGraph, *, moved: bool) -> None:
    before, after = statistics(source.graph), statistics(target.graph)
    changed = (before.collectives, before.payload_bytes) != (after.collectives, after.payload_bytes)
    tally.counts["communication changed", "graphs"] += moved and changed
    for when, found in (("before", before), ("after", after)):
        tally.counts["all_reduces", when] += found.all_reduces
        tally.counts["payload_bytes", when] += found.payload_bytes
