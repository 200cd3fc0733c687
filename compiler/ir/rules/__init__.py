"""Op rules: one table, op -> rule, on which planner, placement analysis and checker build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from torch import fx

from compiler.ir.rules import attention, contraction, elementwise, indexing, reduction, shaping
from compiler.ir.rules.builders import Rule
from compiler.ir.rules.meaning import (
    BROADCAST,
    RANGE,
    RESHAPE,
    Call,
    Dims,
    Meaning,
    Selection,
    Term,
    identity,
)

RULES: Mapping[object, Rule] = {
    **elementwise.RULES,
    **shaping.RULES,
    **reduction.RULES,
    **contraction.RULES,
    **indexing.RULES,
    **attention.RULES,
}


def meaning(node: fx.Node) -> Meaning | None:
    """Return the meaning of ``node``, or None if its op has no rule."""
    return meaning_of(Call.of(node)) if node.target in RULES else None


@lru_cache(maxsize=1 << 14)
def meaning_of(call: Call) -> Meaning | None:
    """Return the meaning of ``call``, or None if its op has no rule."""
    if call.target not in RULES:
        return None
    return replace(RULES[call.target](call), rank_dependent=call.rank_dependent)


__all__ = [
    "BROADCAST",
    "RANGE",
    "RESHAPE",
    "RULES",
    "Call",
    "Dims",
    "Meaning",
    "Selection",
    "Term",
    "identity",
    "meaning",
    "meaning_of",
]
