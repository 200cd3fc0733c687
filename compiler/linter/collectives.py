"""Collectives: reductions over wrong ranks, values or terms, gathers of what should be summed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import torch
from torch import fx

from compiler.analysis.placements import PARTIAL, REDUCING
from compiler.analysis.reductions import zeros
from compiler.ir import access
from compiler.ir.collectives import WAIT, Collective, Kind, collective, collectives
from compiler.ir.mesh import ReplicaGroups
from compiler.ir.placement import Partial, Shard
from compiler.ir.rules import Term, contraction
from compiler.linter.facts import ADDING, LintFacts, listed
from compiler.linter.finding import Finding
from compiler.linter.gathered_blocks import misread

aten = torch.ops.aten
KINDS = ("sum", "avg", "max", "min", "product")
"""Reductions whose parts are told apart by name."""
PIECES = frozenset(
    {aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int}
)
"""Ops of several results, consecutive ranges of their operand."""
PICKS = frozenset({aten.slice.Tensor, aten.narrow.default})
"""Ops that keep a range of their operand."""
NORM = aten.linalg_vector_norm.default
SUMS = frozenset(
    {aten.sum.dim_IntList, aten.sum.default, aten.mean.dim, aten.mean.default, aten.einsum.default}
)


def misused_collectives(facts: LintFacts) -> Iterator[Finding]:
    """Yield findings about reductions, gathers, and collectives that nothing depends on."""
    seen: dict[ReplicaGroups, set[fx.Node]] = {}
    for node, what in collectives(facts.graph.graph):
        if node not in facts.live:
            problem = f"nothing that the graph returns depends on this {what.kind}"
            yield facts.finding(
                "unused-collective", node, problem, "use its result, or leave it out"
            )
        elif what.kind in REDUCING:
            terms = SummedTerms(facts, node, what)
            yield from (
                *terms.equal_operand(),
                *terms.other_kind(),
                *terms.norms(),
                *terms.shards(),
            )
            if what.op == "sum":
                yield from terms.replicated(
                    seen.setdefault(facts.graph.mesh.group(what.group), set())
                )
        elif what.kind in (Kind.ALL_GATHER, Kind.BROADCAST, Kind.ALL_TO_ALL):
            yield from _gathers(facts, node, what)


@dataclass(frozen=True)
class SummedTerms:
    """What one reduction takes to be addends: an operand, and the terms that it is a sum of.

        sum over ranks of (a_r + b)  =  sum of a_r  +  n b

    A term that is the same on all n ranks counts n times. Terms are sought backward, as far as ops
    are linear in the one operand that varies. Right are terms that are scaled by 1 / n on the way,
    and constants, unless they join what is sure to be a partial sum.
    """

    facts: LintFacts
    node: fx.Node
    reduction: Collective

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The axes that are reduced over, or the group where it is not a product of axes."""
        return self.facts.spanned(self.reduction)

    @property
    def over(self) -> str:
        """``tp``, ``tp and ep``, or ``group 'odd'``."""
        is_axes = set(self.names) <= self.facts.graph.mesh.axes.keys()
        return listed(self.names) if is_axes else f"group {self.reduction.group!r}"

    def count(self, *values: fx.Node) -> int:
        """Return how many ranks of a group are sure to hold the same of all ``values``."""
        equal = (self.facts.equal(x, self.names) for x in values)
        return self.facts.ranks(frozenset(self.names).intersection(*equal))

    def equal_operand(self) -> Iterator[Finding]:
        """Yield the finding that ranks of the group are sure to hold the same operand."""
        facts, reduction, operand = self.facts, self.reduction, self.reduction.operand
        kind, name, count = reduction.kind, facts.name(operand), self.count(operand)
        if count == 1 or reduction.op not in ADDING:
            return
        if facts.counts_ranks(self.node, reduction, count):
            return
        equal = facts.equal(operand, self.names)
        owed = [
            a for a in facts.axes if a not in self.names and facts.placement(operand, a) == PARTIAL
        ]
        if len(equal) == len(self.names) and not owed:
            effect = "multiplied by" if reduction.op == "sum" else "taken to the power of"
            own = ", this rank's rows of it" if kind is Kind.REDUCE_SCATTER else ""
            yield facts.finding(
                "double-reduction",
                self.node,
                f"{kind} over {self.over} of {name}, which is already the same on all {count} "
                f"ranks: it is {effect} {count}",
                f"{name} itself{own}; if it is meant to hold addends, declare the placements of "
                "what it is computed from",
            )
        else:
            yield facts.finding(
                "wrong-group",
                self.node,
                f"{kind} over {self.over} of {name}, which is the same on every rank of "
                f"{listed(a for a in self.names if a in equal)}: it counts {count} times"
                + (f"; the ranks of {listed(owed)} hold its addends" if owed else ""),
                f"{kind} over {listed([a for a in self.names if a not in equal] + owed)}",
            )

    def other_kind(self) -> Iterator[Finding]:
        """Yield the finding about an average of a partial sum, a sum of a partial maximum."""
        facts, operand, op = self.facts, self.reduction.operand, self.reduction.op
        placements = (facts.placement(operand, a) for a in self.names)
        kinds = [p.op for p in placements if isinstance(p, Partial)]
        if op == "avg" and "sum" in kinds:
            is_mean = facts.is_rescaled(operand)
            kinds = ["sum"]
            if is_mean or facts.is_scaled_later(self.node, facts.ranks(self.names)):
                return
        if op == "sum" and "avg" in kinds:
            by_n = facts.is_scaled_later(self.node, 1 / facts.ranks(self.names))
            if by_n or facts.is_rescaled(operand):
                return
        if kinds and {kinds[0], op} <= set(KINDS) and kinds[0] != op:
            kind = self.reduction.kind
            yield facts.finding(
                "wrong-kind",
                self.node,
                f"{kind} takes the {op} over {self.over} of {facts.name(operand)}, whose value is "
                f"the {kinds[0]} of what the ranks hold",
                f"{kind} with op = {kinds[0]}",
            )

    def norms(self) -> Iterator[Finding]:
        """Yield the finding that norms of blocks are added up: their squares would add up."""
        facts, node = self.facts, self.reduction.operand
        while (rule := facts.rule(node)) is not None and rule.terms and len(rule.terms) == 1:
            if len(rule.terms[0].reads) != 1:
                return
            node = access.operands(node)[rule.terms[0].reads[0]]
        if node.target is not NORM or access.arguments(node)["ord"] != 2:
            return
        (source,), dims = access.operands(node), access.arguments(node)["dim"]
        rank = len(access.shape(source))
        along = {d % rank for d in dims} if dims else set(range(rank))
        for axis in self.names if self.reduction.op in ("sum", "avg") else ():
            placement = facts.placement(source, axis)
            if isinstance(placement, Shard) and placement.dim in along:
                yield facts.finding(
                    "wrong-kind",
                    self.node,
                    f"{self.reduction.kind} over {axis} adds up {facts.name(node)}, the norms of "
                    f"blocks of {facts.name(source)}: the norm is the root of the sum of their "
                    "squares",
                    f"the square of {facts.name(node)} reduced, and its root",
                )

    def shards(self) -> Iterator[Finding]:
        """Yield findings about blocks that are added up; blocks of one row are the rows."""
        facts, operand = self.facts, self.reduction.operand
        name, shape = facts.name(operand), access.concrete_shape(operand)
        for axis in self.names if self.reduction.op in ("sum", "avg") else ():
            placement = facts.placement(operand, axis)
            if isinstance(placement, Shard) and shape[placement.dim] != 1:
                yield facts.finding(
                    "sums-shards",
                    self.node,
                    f"{self.reduction.kind} over {axis} of {name}, of which every rank holds "
                    f"another block along dimension {placement.dim} ({placement}): it adds "
                    "elements that do not belong together",
                    f"all_gather({name}) over {axis}, or the sum before {name} is cut",
                )

    def replicated(self, seen: set[fx.Node]) -> Iterator[Finding]:
        """Yield findings about terms that count more than once, in values not ``seen`` yet."""
        ranks = self.facts.graph.mesh.group(self.reduction.group).axis_size
        zero = zeros(self.facts.graph)
        stack = [self.reduction.operand]
        while stack:
            node = stack.pop()
            rule = self.facts.rule(node)
            if node in seen or rule is None or rule.terms is None or rule.rank_dependent:
                continue
            seen.add(node)
            operands = access.operands(node)
            for term in rule.terms:
                factors = [operands[i] for i in term.operands]
                read = [operands[i] for i in term.reads]
                if any(x in zero for x in factors):
                    continue
                extra = self.count(*read) // self.count(node)
                if extra > 1 and not self.is_meant(node, term, extra):
                    yield self.finding(node, term, extra)
                varying = [x for x in read if self.count(x) < ranks]
                if len(varying) == 1 and varying[0] in factors:
                    stack.append(varying[0])

    def is_meant(self, node: fx.Node, term: Term, extra: int) -> bool:
        """Return whether the term is scaled to count once, or a constant beside no partial sum."""
        operands = access.operands(node)
        factors = [operands[i] for i in term.operands]
        if all(x in self.facts.constants for x in factors):
            is_sum = any(self.facts.partial_axes(x) for x in operands)
            return not is_sum or is_divided(self.number(term, factors), extra)
        if any(self.facts.is_scaled(x, extra, term.coefficient) for x in factors):
            return True
        total = self.facts.copies[self.reduction.operand]
        own = {base for x in factors for base in self.facts.copies[x]}
        counts = [abs(total[base]) * extra for base in own if base in total]
        return len(counts) == len(own) and all(n == 0 or abs(n - 1) < 1e-6 for n in counts)

    def number(self, term: Term, factors: Sequence[fx.Node]) -> Fraction:
        """Return the constant that a term is; 0 where it is not one number."""
        number = term.coefficient
        for x in factors:
            rule = self.facts.rule(x)
            terms = () if rule is None or rule.terms is None else rule.terms
            plain = len(terms) == 1 and not terms[0].operands
            number *= terms[0].coefficient if plain else 0
        return number

    def finding(self, node: fx.Node, term: Term, extra: int) -> Finding:
        """Return the finding about a term that is counted ``extra`` times."""
        facts = self.facts
        first = access.operands(node)[term.operands[0]] if term.operands else None
        name = "a constant" if first is None else facts.name(first)
        again = None if first is None else self.reduced_by(first)
        how = f"the {again} over all ranks already" if again else "the same on every rank"
        result = f"{facts.name(self.node)} = {self.reduction.kind} over {self.over}"
        return facts.finding(
            "replicated-term",
            node,
            f"{facts.op(node)} adds {name}, which is {how}, to what {result} adds up: it counts "
            f"{extra} times",
            f"add {name} after {facts.name(self.node)}, on one rank only, or scaled by 1/{extra}"
            + ("; or leave out its own reduction" if again == "sum" else ""),
        )

    def reduced_by(self, node: fx.Node) -> str | None:
        """Return the kind of reduction over the same ranks in whose result ``node`` is linear."""
        mesh = self.facts.graph.mesh
        past = self.facts.linear_past(node)
        for step in [node, *(access.operands(x)[i] for x, term, _ in past for i in term.operands)]:
            what = collective(step)
            if what is not None and what.kind in REDUCING:
                same = mesh.group(what.group) == mesh.group(self.reduction.group)
                return what.op if same else None
        return None


def is_divided(number: Fraction, count: int) -> bool:
    """Return whether ``number`` is a fraction that ``count`` makes a whole number."""
    number = number.limit_denominator(1 << 20)
    return number.denominator > 1 and (number * count).denominator == 1


def _gathers(facts: LintFacts, node: fx.Node, gather: Collective) -> Iterator[Finding]:
    """Yield the finding about an all_gather or a broadcast, by what becomes of its result."""
    axes = facts.spanned(gather)
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
    if (reader := misread(facts, node, gather)) is not None:
        placed = {a: facts.placement(gather.operand, a) for a in facts.axes}
        nested = [a for a in facts.axes if placed[a] == Shard(cut[0])]
        where, remedy = f"along dimension {cut[0]}", (
            f"transpose {name} first, or split what is gathered into {ranks} blocks and join them "
            f"along dimension {cut[0]}"
        )  # fmt: skip
        if len(nested) > len(axes) and cut[0] == 0:
            where = f"over {listed(nested)}, in this order"
            remedy = f"all_gather over {listed(reversed(nested))}, in this order"
        yield facts.finding(
            "wrong-gather-dim",
            node,
            f"all_gather puts the blocks of {name} one below the other along dimension 0, but they "
            f"are cut {where}; {facts.name(reader)} reads the rows as they are",
            remedy,
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
    if reader.target is aten.select.int and rows == 1 and arguments["dim"] == 0:
        index = arguments["index"]
        return None if isinstance(index, access.RankInt) else {int(index) % count}
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
