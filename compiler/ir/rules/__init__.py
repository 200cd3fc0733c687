"""Op rules: one table, op -> rule, on which planner, placement analysis and checker build."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TypeVar

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


T = TypeVar("T")
_OF_MEANINGS: list[Callable[[], None]] = []


def cached_by_call(function: Callable[[Call], T]) -> Callable[[Call], T]:
    """Cache what follows from meanings, until ops are declared."""
    cached = lru_cache(maxsize=1 << 14)(function)
    _OF_MEANINGS.append(cached.cache_clear)
    return cached


def forget_meanings() -> None:
    """Empty all caches of ``cached_by_call``: an op is declared, or otherwise than before."""
    for clear in _OF_MEANINGS:
        clear()


@cached_by_call
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
    "cached_by_call",
    "forget_meanings",
    "identity",
    "meaning",
    "meaning_of",
]
