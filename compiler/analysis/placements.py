"""Placement analysis: what each rank holds of every value, per mesh axis.

Direction  forward, one sweep in graph order.
Domain     flat, per axis: Replicate, Shard(d), Partial(op), Varying; Varying is the top.
Result     node -> placements of every value that is one tensor; the graph is not touched.
Refuses    nothing: what the rules do not derive is Varying. Replicate is taken from the
           replication analysis, which is exact; Shard and Partial follow from factor labels:

    every operand with the factor cut along it, all others replicated  =>
        result carries the factor: Shard there;  only operands carry it: Partial(sum)
    one partial operand per term, all others replicated                =>  Partial
    a mean, maximum, … over the dimension that is cut                  =>  Partial(avg, max, …)
    each rank's rows, by its position, of what is replicated           =>  Shard

Operands that do not suit each other are a ``Violation``. ``on_violation`` may say with which
placements to go on; a linter goes on with what the author most likely intended, so that one
mistake gives one finding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from compiler.analysis.own_rows import differs_along, own_rows
from compiler.analysis.replication import replicated_over, replication
from compiler.ir import access
from compiler.ir.collectives import OPS, WAIT, Collective, Kind, collective
from compiler.ir.graph import SpmdGraph
from compiler.ir.placement import Partial, Placement, Placements, Replicate, Shard, Varying
from compiler.ir.row_ops import all_slice
from compiler.ir.rules import RESHAPE, Call, Meaning, Term
from compiler.ir.rules.contraction import PRODUCTS

REPLICATE, VARYING, PARTIAL = Replicate(), Varying(), Partial("sum")
LINEAR = {Partial("sum"), Partial("avg")}
REDUCING = (Kind.ALL_REDUCE, Kind.REDUCE_SCATTER)
MEANS = (torch.ops.aten.mean.default, torch.ops.aten.mean.dim)
Label = int | str | None


@dataclass(frozen=True)
class Violation:
    """A call whose operands do not suit each other along one axis.

    Attributes:
        kind: ``nonlinear-on-partial``, ``missing-reduction`` (a term without the partial sum, or
            one that multiplies it by a shard), ``wrong-kind`` (partial results of two kinds),
            ``crossed-shards``, ``sharded-meets-whole`` (an operand that is not cut beside shards),
            ``wrong-group`` (a reduction of a partial sum over another axis).
        node: the call.
        axis: the mesh axis.
        operands: the operand to blame, and the one that it does not suit, if it is an operand.
        placements: of every operand along the axis.
        intended: placements that would suit each other.
        term: the term of the op that it is about, if it is about one.
    """

    kind: str
    node: fx.Node
    axis: str
    operands: tuple[fx.Node, ...]
    placements: Placements
    intended: Placements
    term: Term | None = None


OnViolation = Callable[[Violation], Placements | None]
"""Returns the operands' placements to go on with: those that are there, if the call is right as it
is; None where nothing is known."""


def placements(
    graph: SpmdGraph, on_violation: OnViolation | None = None
) -> Mapping[fx.Node, Placements]:
    """Return the placements of every tensor of ``graph``.

    Args:
        graph: the graph; its inputs' placements are taken as they are.
        on_violation: asked about operands that do not suit each other; default: after them the
            result is Varying.
    """
    sweep = _Sweep(graph, on_violation or (lambda violation: None))
    for node in graph.graph.nodes:
        if node.op != "output":
            sweep.results[node] = {axis: sweep.after(node, axis) for axis in graph.mesh.axes}
    return {
        node: tuple(sweep.placement(node, axis) for axis in graph.mesh.axes)
        for node in sweep.results
        if access.is_tensor(node)
    }


class _Sweep:
    """What is derived so far: node -> axis -> placement of each result."""

    def __init__(self, graph: SpmdGraph, on_violation: OnViolation) -> None:
        self.graph, self.on_violation = graph, on_violation
        self.classes = replication(graph)
        self.results: dict[fx.Node, dict[str, Placements]] = {}

    def placement(self, node: fx.Node, axis: str) -> Placement:
        """Return the placement of a value, of several results the first one's."""
        return next(iter(self.results[node][axis]), VARYING)

    def after(self, node: fx.Node, axis: str) -> Placements:
        """Return the placement of each result of ``node``."""
        if node in self.classes and replicated_over(
            self.classes[node], self.graph.mesh.groups[axis]
        ):
            return (REPLICATE,) * _result_count(node)
        if node.op in ("placeholder", "get_attr"):
            position = list(self.graph.mesh.axes).index(axis)
            return (self.graph.inputs[str(node.target)][position],)
        if node.target is WAIT:
            return self.results[access.operands(node)[0]][axis]
        if node.target in OPS and (communication := collective(node)) is not None:
            return (self.after_collective(node, axis, communication),)
        if (index := access.projection(node)) is not None:
            return self.results[access.operands(node)[0]][axis][index : index + 1]
        if (cut := all_slice(node)) is not None:
            is_whole = self.placement(cut.operand, axis) == REPLICATE
            exactly = self.graph.mesh.axes_of(cut.group) == (axis,)
            return (Shard(cut.dim) if is_whole and exactly else VARYING,)
        return self.after_call(node, axis)

    def after_collective(self, node: fx.Node, axis: str, what: Collective) -> Placement:
        """Return what a collective leaves that does not make all ranks of the axis equal."""
        placement, axes = self.placement(what.operand, axis), self.graph.mesh.axes_of(what.group)
        if axes is None:
            return VARYING
        if axis in axes:
            return Shard(0) if what.kind is Kind.REDUCE_SCATTER else VARYING
        match placement:
            case Partial(op) if what.kind in REDUCING:
                reduced = (REPLICATE,)
                operands = (what.operand,)
                violation = Violation("wrong-group", node, axis, operands, (placement,), reduced)
                if self.on_violation(violation) == reduced:
                    return REPLICATE
                return placement if op == what.op or {op, what.op} == {"sum", "avg"} else VARYING
            case Shard(dim=0) if what.kind not in (Kind.ALL_REDUCE, Kind.BROADCAST):
                return VARYING
        return placement

    def after_call(self, node: fx.Node, axis: str) -> Placements:
        """Return the placements of a call's results."""
        rule = self.graph.meanings.get(node)
        if rule is None or rule.random:
            return (VARYING,) * _result_count(node)
        if rule.rank_dependent and differs_along(node, self.graph.mesh, axis):
            own, source = own_rows(node, self.graph.mesh), access.operands(node)[:1]
            is_whole = [self.placement(x, axis) for x in source] == [REPLICATE]
            if own is None or not own.group or self.graph.mesh.axes_of(own.group) != (axis,):
                is_whole = False
            return (Shard(own.dim) if own and is_whole else VARYING,) * _result_count(node)
        operands = tuple(self.placement(x, axis) for x in access.operands(node))
        site = CallSite(node, rule, axis, operands, self.on_violation)
        if node.target in PRODUCTS and len(rule.terms or ()) == 2:
            product = replace(PRODUCTS[node.target](Call.of(node)), casts=False)
            factors = product.terms[0].operands if product.terms else ()
            alone = tuple(p if i in factors else REPLICATE for i, p in enumerate(operands))
            if replace(site, rule=product, operands=alone).results() == (PARTIAL,):
                # The product may be cut where it contracts; what is added to it then counts.
                operands = tuple(PARTIAL if i in factors else p for i, p in enumerate(operands))
                sum_of_both = Meaning(terms=(Term(factors[:1]), *(rule.terms or ())[:1]))
                site = replace(site, rule=sum_of_both, operands=operands)
        return site.results()


@dataclass(frozen=True)
class CallSite:
    """One call, its rule, and what its operands are along one axis."""

    node: fx.Node
    rule: Meaning
    axis: str
    operands: Placements
    on_violation: OnViolation

    def results(self) -> Placements:
        """Return the placement of each result."""
        reads = self.rule.reads
        read = range(len(self.operands)) if reads is None else sorted(reads)
        partial = [i for i in read if isinstance(self.operands[i], Partial)]
        kinds = {self.operands[i] for i in partial}
        if all(self.operands[i] == REPLICATE for i in read):
            return self.every(REPLICATE)
        if not kinds:
            return self.sharded(read)
        if len(kinds) > 1:
            if not kinds <= LINEAR:  # a sum that was divided by something may be an average
                self.violated("wrong-kind", self.operands, partial[0])
            return self.every(VARYING)
        if kinds <= LINEAR:
            return self.partial(partial)
        (kind,) = kinds
        return self.every(kind if self.selects(kind, read) else VARYING)

    def selects(self, kind: Placement, read: Sequence[int]) -> bool:
        """Return whether the call selects elements, or combines them, of partial results alone."""
        chosen, result = self.rule.selection, access.value(self.node)
        return (
            chosen is not None
            and isinstance(kind, Partial)
            and isinstance(result, torch.Tensor)
            and chosen.distributes(kind.op, result.dtype)
            and all(self.operands[i] == kind for i in read)
        )

    def every(self, placement: Placement) -> Placements:
        """Return the same placement for all results."""
        return (placement,) * _result_count(self.node)

    def violated(
        self, kind: str, intended: Placements, *positions: int, term: Term | None = None
    ) -> Placements | None:
        """Return the placements of operands to go on with after a violation."""
        involved = tuple(access.operands(self.node)[i] for i in positions)
        return self.on_violation(
            Violation(kind, self.node, self.axis, involved, self.operands, intended, term)
        )

    def again(self, operands: Placements | None) -> Placements:
        """Return the results for other placements of the operands."""
        return (
            self.every(VARYING) if operands is None else replace(self, operands=operands).results()
        )

    def partial(self, partial: Sequence[int]) -> Placements:
        """Return the results where some operands are partial sums."""
        reduced = tuple(REPLICATE if i in partial else p for i, p in enumerate(self.operands))
        result, terms = self.operands[partial[0]], self.rule.terms
        if terms is None or not all(_is_linear(term, partial) for term in terms):
            return self.again(self.violated("nonlinear-on-partial", reduced, partial[0]))
        for term in terms:
            others = [i for i in term.reads if i not in partial]
            scales = len(others) < len(term.reads)
            cut = [i for i in others if isinstance(self.operands[i], Shard)] if scales else []
            if cut or not scales:
                positions = (partial[0], *(cut or term.operands)[:1])
                intended = self.violated("missing-reduction", reduced, *positions, term=term)
                if intended != self.operands:
                    return self.again(intended)
            elif any(self.operands[i] != REPLICATE for i in others):
                result = VARYING
        return self.every(result)

    def sharded(self, read: Sequence[int]) -> Placements:
        """Return the results where no operand is a partial sum and not all are replicated."""
        dims, sums = self.rule.dims, self.rule.terms is not None
        if dims is None:
            return self.every(VARYING)
        cut = {i: dims.operands[i][p.dim] for i in read if isinstance(p := self.operands[i], Shard)}
        shards = [i for i in cut if cut[i] is not None]
        factor = cut[shards[0]] if shards else None
        crossed = [i for i in shards if cut[i] != factor]
        if crossed and not self.meets_units(cut):
            self.violated("crossed-shards", self.operands, shards[0], crossed[0])
        if not crossed and len(cut) == 1 and (kind := self.combined(*cut)) is not None:
            return self.every(kind)
        if crossed or not shards or None in cut.values():
            return self.every(VARYING)
        contracts = sums and not any(factor in labels for labels in dims.results)
        may_be_cut = (Replicate, Varying) if contracts else Replicate
        intended = list(self.operands)
        for i in read:
            if factor in dims.operands[i] and isinstance(intended[i], may_be_cut):
                intended[i] = Shard(dims.operands[i].index(factor))
        uncut = [i for i in read if intended[i] != self.operands[i]]
        if uncut:
            positions = uncut[0], shards[0]
            return self.again(self.violated("sharded-meets-whole", tuple(intended), *positions))
        if any(self.operands[i] == VARYING for i in read):
            return self.every(VARYING)
        if self.moves_across_ones(shards[0], factor):
            return self.every(VARYING)
        summed = PARTIAL if sums else VARYING
        return tuple(Shard(r.index(factor)) if factor in r else summed for r in dims.results)

    def meets_units(self, cut: Mapping[int, Label]) -> bool:
        """Return whether a factor that is cut in one operand is whole in another that is cut.

        Then the block may be a unit of its own, as the one key head that the query heads of this
        rank share: what the factor counts, each rank has all of.
        """
        dims = self.rule.dims
        labels = () if dims is None else dims.operands
        return any(cut[i] in labels[j] for i in cut for j in cut if cut[i] not in (None, cut[j]))

    def combined(self, operand: int) -> Placement | None:
        """Return what a mean, maximum or the like over a dimension that is cut is part of."""
        placement, chosen = self.operands[operand], self.rule.selection
        terms, kind = self.rule.terms, "avg" if self.node.target in MEANS else ""
        if terms is None and chosen is not None:
            terms, kind = chosen.terms, chosen.combine
        if not kind or not terms or not isinstance(placement, Shard):
            return None
        key = terms[0].map
        along = key[1] if isinstance(key, tuple) and len(key) == 2 else ()
        return Partial(kind) if placement.dim in along else None

    def moves_across_ones(self, operand: int, factor: int | str | None) -> bool:
        """Return whether it is open which dimension of a reshaped tensor is cut.

        One head per rank: [tokens, 64] as [tokens, 1, 64] is cut along heads, or not.
        """
        dims, terms = self.rule.dims, self.rule.terms
        if not terms or terms[0].map is not RESHAPE or not dims or factor not in dims.results[0]:
            return False
        before = access.concrete_shape(access.operands(self.node)[operand])
        after = access.concrete_shape(self.node)
        before = before[: dims.operands[operand].index(factor)]
        return _trailing_ones(before) != _trailing_ones(after[: dims.results[0].index(factor)])


def _result_count(node: fx.Node) -> int:
    value = node.meta.get("val")
    return len(value) if isinstance(value, list | tuple) else 1


def _is_linear(term: Term, partial: Sequence[int]) -> bool:
    """Return whether the term is linear in the operands that are partial."""
    return sum(i in partial for i in term.operands) <= 1 and not set(term.fixed) & set(partial)


def _trailing_ones(sizes: Sequence[int]) -> int:
    return next((i for i, size in enumerate(reversed(sizes)) if size != 1), len(sizes))
