"""Op rules: one table, op -> rule; the semantics of ops that everything else builds on."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from torch import fx

from compiler.ir.rules import attention, contraction, elementwise, indexing, shaping
from compiler.ir.rules.build import Rule
from compiler.ir.rules.meaning import BROADCAST, RESHAPE, Call, Dims, Meaning, Term

RULES: Mapping[object, Rule] = {
    **elementwise.RULES,
    **shaping.RULES,
    **contraction.RULES,
    **indexing.RULES,
    **attention.RULES,
}


def meaning(node: fx.Node) -> Meaning | None:
    """The meaning of ``node``, or None if its op has no rule."""
    return meaning_of(Call.of(node)) if node.target in RULES else None


@lru_cache(maxsize=1 << 14)
def meaning_of(call: Call) -> Meaning | None:
    """The meaning of ``call``, or None if its op has no rule."""
    return RULES[call.target](call) if call.target in RULES else None


__all__ = [
    "BROADCAST",
    "RESHAPE",
    "RULES",
    "Call",
    "Dims",
    "Meaning",
    "Term",
    "meaning",
    "meaning_of",
]
