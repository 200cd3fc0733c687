"""Op rules: one table, op -> rule, on which planner, placement analysis and checker build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from torch import fx

from compiler.ir.rules import (
    attention,
    contraction,
    elementwise,
    indexing,
    opaque,
    reduction,
    shaping,
)
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
    if node.target in RULES:
        return meaning_of(Call.of(node))
    op = opaque.op_called(node.target, next(iter(node.args), None))
    return (
        None
        if op is None or opaque.name_of(op) not in opaque.DECLARED
        else meaning_of(Call.of(node))
    )


@lru_cache(maxsize=1 << 14)
def meaning_of(call: Call) -> Meaning | None:
    """Return the meaning of ``call``, or None if its op has no rule."""
    rule = RULES[call.target](call) if call.target in RULES else opaque.declared(call)
    if rule is None or not call.rank_dependent:
        return rule
    return replace(rule, rank_dependent=True)


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
