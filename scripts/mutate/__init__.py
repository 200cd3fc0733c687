"""Breaks correct graphs on purpose, and judges by simulation whether they are broken.

A mutation is a function that takes a ``Draft`` and makes one mistake in it; its name is what the
tables call it. The judge shares nothing with the checker but the interpreter of single ops.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from compiler.ir.graph import SpmdGraph
from scripts.mutate import arguments, collectives, values
from scripts.mutate.draft import Draft, NothingToBreakError
from scripts.mutate.judge import Judge, Outcome, Pair, judged

Mutation = Callable[[Draft], None]

MUTATIONS: dict[str, Mutation] = {
    mutation.__name__: mutation
    for mutation in (*collectives.MUTATIONS, *values.MUTATIONS, *arguments.MUTATIONS)
}
"""Every mutation by name."""

ROUNDING = frozenset({values.rounded.__name__})
"""Mutations that no simulation over the reals sees."""


def mutant(graph: SpmdGraph, name: str, rng: random.Random) -> SpmdGraph:
    """A copy of ``graph`` with one mistake of the kind ``name``.

    Raises:
        NothingToBreakError: the graph has no place for it, or it made no graph.
    """
    draft = Draft.of(graph, rng)
    MUTATIONS[name](draft)
    return draft.finish()


__all__ = [
    "MUTATIONS",
    "ROUNDING",
    "Draft",
    "Judge",
    "NothingToBreakError",
    "Outcome",
    "Pair",
    "judged",
    "mutant",
]
