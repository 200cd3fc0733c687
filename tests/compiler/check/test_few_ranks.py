"""Verdicts on few ranks are those on all: random graphs, planned and with mistakes in them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator

import pytest

from compiler.check.compare import Comparing, Comparison, compared
from compiler.check.rank_axes import RankAxes
from compiler.check.sizes import RowSizes
from compiler.errors import CommPlanError
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import Mesh
from passes import EliminateDeadCode
from scripts.mutate import MUTATIONS, NothingToBreakError, mutant
from scripts.mutate.pairs import optimized
from tests.support.random_graphs import KINDS, random_graph

MESHES = (
    Mesh({"tp": 12}),
    Mesh({"dp": 2, "tp": 12}),
    Mesh({"dp": 9, "tp": 4}),
    Mesh({"tp": 16}, {"pairs": [[2 * i, 2 * i + 1] for i in range(8)]}),
    Mesh({"tp": 18}, {"thirds": [[i, i + 6, i + 12] for i in range(6)]}),
)


SHARED = (*KINDS, *("scatter", "gather blocks", "own block") * 5)
"""Kinds of ops, those that share rows often."""


def pairs(seed: int) -> Iterator[tuple[SpmdGraph, SpmdGraph]]:
    """A random graph with its plan, and with mistakes made in either."""
    rng = random.Random(seed)
    mesh = MESHES[seed % len(MESHES)]
    kinds = rng.choice((KINDS, SHARED))
    graph = random_graph(rng.choice, rng.randint(4, 14), kinds, mesh=mesh, rows=mesh.size * 2)
    source = EliminateDeadCode().apply(graph).graph
    planned = optimized(source)
    yield source, planned
    for name in rng.sample(list(MUTATIONS), 3):
        try:
            yield source, mutant(rng.choice((source, planned)), name, rng)
        except NothingToBreakError:
            continue


def verdicts(source: SpmdGraph, target: SpmdGraph) -> tuple[Comparison, Comparison] | None:
    """What differs, on few ranks and on all; None where the model has no word for the mistake."""
    try:
        few = compared(source, target, {})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Comparing, "_first", lambda self: self.axes.sizes)
            return few, compared(source, target, {})
    except CommPlanError:
        return None


def agreed(seeds: Iterable[int]) -> Counter[str]:
    """How many verdicts there are of each kind; on few ranks and on all they must be the same."""
    tally: Counter[str] = Counter()
    for seed in seeds:
        for source, target in pairs(seed):
            both = verdicts(source, target)
            if both is None:
                continue
            few, every = both
            assert few.unequal == every.unequal, (seed, few.kept.kept, few.apart)
            assert few.unequal or few.kept.decide, seed
            tally["differ" if few.unequal else "equal"] += 1
            if len(few.kept) < source.mesh.size:
                tally["on fewer ranks"] += 1
                blocks = (i for v in few.before.values() for i, _ in v.layout if i is not None)
                tally["in fewer blocks"] += any(True for _ in blocks)
    return tally


def refused(seeds: Iterable[int]) -> int:
    """How many pairs differ; they must when some of their values are sealed."""
    count = 0
    for seed in seeds:
        for source, target in pairs(seed):
            axes = RankAxes.of(source.mesh, ())
            comparing = Comparing(source, target, {}, axes, RowSizes.of((source, target), axes))
            nodes = [*source.graph.nodes, *target.graph.nodes]
            sealed = random.Random(seed).sample(nodes, len(nodes) // 4)
            try:
                unequal = comparing.on(axes.sizes).unequal
            except CommPlanError:
                continue
            if unequal:
                count += 1
                assert comparing.on(axes.sizes, sealed).unequal, seed
    return count


def test_few_ranks_and_all_agree() -> None:
    tally = agreed(range(12))
    assert tally["on fewer ranks"] > 0.5 * (tally["differ"] + tally["equal"]), tally
    assert min(tally.values()) > 3, tally


def test_no_seal_makes_graphs_agree_that_differ() -> None:
    assert refused(range(6)) > 5


@pytest.mark.campaign
def test_few_ranks_and_all_agree_and_no_seal_deceives_in_many_graphs() -> None:
    assert agreed(range(12, 700))["in fewer blocks"] > 100
    assert refused(range(6, 200)) > 100
