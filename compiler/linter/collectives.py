"""Collectives: reductions over the wrong ranks or values, gathers of what should be summed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from compiler.analysis.placements import REDUCING
from compiler.ir import access
from compiler.ir.collectives import WAIT, Collective, Kind
from compiler.ir.placement import Partial, Shard
from compiler.ir.rules import BROADCAST, Meaning, contraction
from compiler.linter.facts import ADDING, LintFacts, listed
from compiler.linter.finding import Finding

aten = torch.ops.aten
KINDS = ("sum", "avg", "max", "min", "product")
"""Reductions whose parts are told apart by name."""
PIECES = frozenset(
    {aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int}
)
"""Ops of several results, consecutive ranges of their operand."""
PICKS = frozenset({aten.slice.Tensor, aten.narrow.default})
"""Ops that keep a range of their operand."""
SUMS = frozenset(
    {aten.sum.dim_IntList, aten.sum.default, aten.mean.dim, aten.mean.default, aten.einsum.default}
)


def misused_collectives(facts: LintFacts) -> Iterator[Finding]:
    """Yield findings about reductions, gathers, and collectives that nothing depends on."""
    for node in facts.nodes:
        what = facts.collective(node)
        if what is None:
            continue
        axes = facts.group_axes(what)
        if node not in facts.live:
            yield facts.finding(
                "unused-collective",
                node,
                f"nothing that the graph returns depends on this {what.kind}",
                "use its result, or leave it out",
            )
        elif what.kind in REDUCING:
            yield from _counts_equals(facts, node, what, axes)
            yield from _of_other_kind(facts, node, what, axes or ())
            yield from _sums_shards(facts, node, what, axes or ())
        elif what.kind in (Kind.ALL_GATHER, Kind.BROADCAST):
            yield from _gathers(facts, node, what, axes or ())


def _counts_equals(
    facts: LintFacts, node: fx.Node, reduction: Collective, axes: tuple[str, ...] | None
) -> Iterator[Finding]:
    """A value that all ranks of the group, or of some of its axes, are sure to hold alike."""
    kind, name = reduction.kind, facts.name(reduction.operand)
    names = (reduction.group,) if axes is None else axes
    equal = facts.equal(reduction.operand, names)
    ranks = (
        facts.graph.mesh.group(reduction.group).axis_size if axes is None else facts.ranks(equal)
    )
    if ranks == 1 or not equal or reduction.op not in ADDING:
        return
    if facts.counts_ranks(node, reduction, ranks):
        return
    owed = [
        a
        for a in facts.axes
        if a not in names and facts.placement(reduction.operand, a) == Partial("sum")
    ]
    if axes is None or (len(equal) == len(axes) and not owed):
        over = f"group {reduction.group!r}" if axes is None else listed(axes)
        effect = (
            f"multiplied by {ranks}" if reduction.op == "sum" else f"taken to the power of {ranks}"
        )
        own = ", this rank's rows of it" if kind is Kind.REDUCE_SCATTER else ""
        yield facts.finding(
            "double-reduction",
            node,
            f"{kind} over {over} of {name}, which is already the same on all {ranks} ranks: "
            f"it is {effect}",
            f"{name} itself{own}; if it is meant to hold addends, declare the placements of what "
            "it is computed from",
        )
    else:
        yield facts.finding(
            "wrong-group",
            node,
            f"{kind} over {listed(axes)} of {name}, which is the same on every rank of "
            f"{listed(a for a in axes if a in equal)}: it counts {ranks} times"
            + (f"; the ranks of {listed(owed)} hold its addends" if owed else ""),
            f"{kind} over {listed([a for a in axes if a not in equal] + owed)}",
        )


def _of_other_kind(
    facts: LintFacts, node: fx.Node, reduction: Collective, axes: tuple[str, ...]
) -> Iterator[Finding]:
    """An average of a partial sum, a sum of a partial maximum."""
    operand, op = reduction.operand, reduction.op
    kinds = [p.op for a in axes if isinstance(p := facts.placement(operand, a), Partial)]
    if op == "avg" and "sum" in kinds:
        if facts.is_rescaled(operand) or facts.is_scaled_later(node, facts.ranks(axes)):
            return
        kinds = ["sum"]
    if kinds and {kinds[0], op} <= set(KINDS) and kinds[0] != op:
        yield facts.finding(
            "wrong-kind",
            node,
            f"{reduction.kind} takes the {op} over {listed(axes)} of {facts.name(operand)}, whose "
            f"value is the {kinds[0]} of what the ranks hold",
            f"{reduction.kind} with op = {kinds[0]}",
        )


def _sums_shards(
    facts: LintFacts, node: fx.Node, reduction: Collective, axes: tuple[str, ...]
) -> Iterator[Finding]:
    """Blocks of more than one row added up; of one row each they are the rows themselves."""
    operand, name = reduction.operand, facts.name(reduction.operand)
    for axis in axes if reduction.op in ("sum", "avg") else ():
        placement = facts.placement(operand, axis)
        if isinstance(placement, Shard) and access.concrete_shape(operand)[placement.dim] != 1:
            yield facts.finding(
                "sums-shards",
                node,
                f"{reduction.kind} over {axis} of {name}, of which every rank holds another block "
                f"along dimension {placement.dim} ({placement}): it adds elements that do not "
                "belong together",
                f"all_gather({name}) over {axis}, or the sum before {name} is cut",
            )


def _gathers(
    facts: LintFacts, node: fx.Node, gather: Collective, axes: tuple[str, ...]
) -> Iterator[Finding]:
    """An all_gather or a broadcast, by what becomes of its result."""
    name, ranks = facts.name(gather.operand), facts.ranks(axes)
    partial = [a for a in axes if a in facts.partial_axes(gather.operand)]
    if partial:
        if gather.kind is Kind.BROADCAST or not _sums_by_hand(facts, node):
            yield facts.finding(
                "gathers-partial",
                node,
                f"{gather.kind} over {listed(axes)} of {name}, a partial sum over "
                f"{listed(partial)}: its addends are handed out and never summed",
                f"all_reduce({name}) over {listed(partial)}",
            )
        return
    cut = [p.dim for a in axes if isinstance(p := facts.placement(gather.operand, a), Shard)]
    if gather.kind is not Kind.ALL_GATHER or not cut:
        return
    if cut[0] != 0 and (reader := _taken_as_rows(facts, node)) is not None:
        yield facts.finding(
            "wrong-gather-dim",
            node,
            f"all_gather puts the blocks of {name} one below the other along dimension 0, but they "
            f"are cut along dimension {cut[0]}; {facts.name(reader)} reads the rows as they are",
            f"transpose {name} first, or split what is gathered into {ranks} blocks and join them "
            f"along dimension {cut[0]}",
        )
    elif cut[0] == 0 and (used := _used_blocks(facts, node, ranks)) is not None:
        yield facts.finding(
            "unused-chunks",
            node,
            f"all_gather over {listed(axes)} of {name}, of whose {ranks} blocks only "
            f"block {', '.join(map(str, used))} is used: the rows of the other ranks are lost",
            f"use all of {facts.name(node)}, or all blocks joined along dimension 0",
        )


def _waits(node: fx.Node) -> list[fx.Node]:
    """Return the results of the collective that ``node`` starts."""
    return [user for user in node.users if user.target is WAIT]


def _sums_by_hand(facts: LintFacts, node: fx.Node) -> bool:
    """Return whether ranks' parts are summed after the gather: over a dimension, or in pieces."""
    stack = _waits(node)
    parts = set(stack)
    while stack:
        for user in stack.pop().users:
            rule = facts.rule(user)
            terms = () if rule is None or rule.terms is None else rule.terms
            pieces = {x for x in access.operands(user) if x in parts}
            if user.target in SUMS or (len(terms) > 1 and len(pieces) > 1):
                return True
            if len(terms) == 1 and user not in parts and user.target not in contraction.RULES:
                parts.add(user)
                stack.append(user)
    return False


def _taken_as_rows(facts: LintFacts, node: fx.Node) -> fx.Node | None:
    """Return the first op that combines the gathered rows with others as they are."""
    stack = _waits(node)
    while stack:
        for user in stack.pop().users:
            rule = facts.rule(user)
            if rule is None or _moves(rule):
                continue
            read = access.operands(user) if rule.reads is None else rule.reads
            if not rule.pointwise or len(read) != 1:
                return user
            stack.append(user)
    return None


def _moves(rule: Meaning) -> bool:
    """Return whether an op rearranges, cuts or picks elements of one tensor."""
    terms = rule.terms or ()
    return len(terms) == 1 and len(terms[0].operands) == 1 and terms[0].map is not BROADCAST


def _used_blocks(facts: LintFacts, node: fx.Node, count: int) -> tuple[int, ...] | None:
    """Return which of ``count`` blocks are read; None where all are, or may be."""
    used: set[int] = set()
    rows, *rest = access.concrete_shape(node)
    for reader in (user for wait in _waits(node) for user in wait.users):
        shape = access.concrete_shape(reader) if access.is_tensor(reader) else ()
        if shape == (count, rows // count, *rest):
            readers = list(reader.users)
            if any(x.target is not aten.select.int or x in facts.unsure for x in readers):
                return None
            used |= {int(access.arguments(x)["index"]) % count for x in readers}
            continue
        picked = None if reader in facts.unsure else _picked(reader, rows // count, count)
        if picked is None:
            return None
        used |= picked
    return tuple(sorted(used)) if 0 < len(used) < count else None


def _picked(reader: fx.Node, rows: int, count: int) -> set[int] | None:
    """Return the blocks that an op picks along dimension 0, None if it does something else."""
    arguments = access.arguments(reader)
    if reader.target not in PIECES | PICKS or arguments.get("dim") != 0:
        return None
    if reader.target in PIECES:
        sizes = [access.concrete(piece.shape[0]) for piece in access.value(reader)]
        if sizes != [rows] * count:
            return None
        return {i for x in reader.users if (i := access.projection(x)) is not None and x.users}
    start = arguments.get("start") or 0
    if access.concrete_shape(reader)[0] != rows or isinstance(start, access.RankInt):
        return None
    block, rest = divmod(access.concrete(start), rows)
    return None if rest else {block}
