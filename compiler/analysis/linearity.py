"""Which ops commute with a reduction over ranks, and why others do not.

sum, avg            ops that are linear in the partial operands, all others replicated
max, min, product   ops that select elements of partial operands, and combine them likewise
reduce_scatter      moreover, ops that treat the rows of dimension 0 alike
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat

import torch
from torch import fx

from compiler.analysis.reductions import LINEAR_KINDS, ReductionFacts, reduction_of
from compiler.analysis.row_shards import row_operands
from compiler.ir import access
from compiler.ir.graph_copy import grows
from compiler.ir.row_ops import all_slice
from compiler.ir.rules import Meaning, Term, elementwise, identity


def why_not_linear(node: fx.Node, partial: Sequence[fx.Node], facts: ReductionFacts) -> str | None:
    """Return why ``node`` may not be computed on ``partial`` operands; None if it may."""
    rule, kind = facts.graph.meanings.get(node), facts.reduction.kind
    if all_slice(node) is not None:
        return f"{node.target} takes other rows on every rank"
    if rule is None:
        return f"{node.target} has no rule"
    if rule.casts and (why := _cast_refusal(node, facts)):
        return why
    if access.rank_constants(node):
        return f"{node.target} takes a number that depends on the rank"
    if rule.rank_dependent:
        return f"{node.target} is not the same function on every rank"
    chosen, terms = rule.selection, rule.terms
    if kind not in LINEAR_KINDS:
        terms = chosen.terms if chosen and chosen.distributes(kind, _dtype(node)) else None
    if terms is None:
        return _nature(node, rule, kind)
    reasons = [why for term in terms if (why := _term_refusal(node, term, partial, facts))]
    if not reasons and facts.reduction.scatters:
        return _row_refusal(node, rule, partial, facts)
    return reasons[0] if reasons else None


def widens(node: fx.Node) -> bool:
    """Whether ``node`` converts its operand to a type that holds all its values."""
    before, after = (_dtype(x) for x in (access.operands(node)[0], node))
    return elementwise.widens(before, after)


def _dtype(node: fx.Node) -> torch.dtype | None:
    return access.dtype(node) if access.is_tensor(node) else None


def _cast_refusal(node: fx.Node, facts: ReductionFacts) -> str | None:
    types = (_dtype(x) for x in (access.operands(node)[0], node))
    before, after = (str(t).removeprefix("torch.") for t in types)
    if widens(node):
        off = f"{node.target} widens {before} to {after}, and widen is off"
        return None if facts.allow_dtype_widening else off
    return f"{node.target} changes the element type from {before} to {after}"


def _nature(node: fx.Node, rule: Meaning, kind: str) -> str:
    """What it is about an op that no operand could change."""
    types = {x: _dtype(x) for x in access.operands(node) if access.is_tensor(x)}
    floats = {t for t in types.values() if t is not None and t.is_floating_point}
    if len(floats) > 1:
        listed = [f"%{x.name} of {str(t).removeprefix('torch.')}" for x, t in types.items()]
        return f"{node.target} reads different element types: {', '.join(listed)}"
    fill = rule.selection.fill if rule.selection else None
    if fill is not None and fill != identity(kind, _dtype(node)):
        return f"{node.target} fills with {fill:g}, which is not the identity of {kind}"
    if kind in LINEAR_KINDS:
        return f"{node.target} is not linear"
    return f"{node.target} does not commute with {kind}"


def _term_refusal(
    node: fx.Node, term: Term, partial: Sequence[fx.Node], facts: ReductionFacts
) -> str | None:
    read, linear = access.operands(node), facts.reduction.kind in LINEAR_KINDS
    factors, fixed = ([read[i] for i in indices] for indices in (term.operands, term.fixed))
    if linear and any(x in facts.zeros for x in factors):
        return None
    if any(x in partial for x in fixed):
        what = "linear in" if linear else "a selection by position of"
        return f"{node.target} is not {what} what it depends on"
    match sum(x in partial for x in factors):
        case 0:
            what = described(factors[0], facts) if factors else "a constant"
            verb = "adds" if linear else "takes"
            return f"{node.target} {verb} {what}, which is not a {facts.reduction.partial}"
        case 1:
            varying = [x for x in (*factors, *fixed) if x not in partial]
            bad = [x for x in varying if not facts.replicated(x)]
            if not bad:
                return None
            return f"{node.target} depends on %{bad[0].name}, which differs between ranks"
        case _:
            return f"{node.target} multiplies partial sums"


def described(node: fx.Node, facts: ReductionFacts) -> str:
    """A value, with the reduction whose result it is."""
    reduction = reduction_of(facts.graph, node)
    if reduction is None:
        return f"%{node.name}"
    return f"%{node.name} ({reduction.collective} {reduction.kind} over {reduction.group})"


def _row_refusal(
    node: fx.Node, rule: Meaning, partial: Sequence[fx.Node], facts: ReductionFacts
) -> str | None:
    """Why the rows of the result are not made of the same rows of ``partial`` alone."""
    carrying = row_operands(node, rule, repeat(0))
    if carrying is None or any(carrying.get(x) != 0 for x in partial):
        return f"{node.target} needs more than this rank's rows"
    for x in carrying:
        if x not in partial:
            return f"{node.target} reads %{x.name} row by row, which has no rows of other ranks"
    if not grows(node, dict.fromkeys(partial, 0), facts.reduction.groups.axis_size):
        return f"{node.target} states how many rows there are"
    return None
