"""What the ranks hold after a call, along one axis, and what is wrong with calling it so.

As in ``compiler.analysis.placements``, with three differences: nothing is lost to rounding; a value
that varies in an unknown way counts as an addend where it meets a weight that is cut along the
contraction; and after a mistake comes what the author meant, so that each is reported once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import fx

from compiler.ir import access
from compiler.ir.placement import Partial, Placement, Replicate, Shard, Varying
from compiler.ir.rules import RESHAPE, Call, Meaning, Term
from compiler.ir.rules.contraction import PRODUCTS
from compiler.ir.rules.meaning import Labels
from compiler.linter.facts import Known, concrete_shape

WHOLE, UNKNOWN, ADDEND = Replicate(), Varying(), Partial("sum")
LINEAR = (Partial("sum"), Partial("avg"))


@dataclass(frozen=True)
class Mistake:
    """What is wrong with a call: a rule, the operand to blame, and the operand it does not suit."""

    rule: str
    operand: fx.Node
    other: fx.Node | None = None


@dataclass(frozen=True)
class Outcome:
    """Placement of each result of a call, and the mistake it makes."""

    results: tuple[Placement, ...]
    mistake: Mistake | None = None


def after_call(known: Known, node: fx.Node, axis: str) -> Outcome:
    """What the ranks of ``axis`` hold after the call ``node``."""
    rule = known.meanings[node]
    held = [known.states[x][axis] for x in access.operands(node)]
    if rule is None or rule.random or rule.rank_dependent:
        return Outcome((UNKNOWN,) * _count(node))
    if node.target in PRODUCTS and len(rule.terms or ()) == 2:
        return _product_and_addend(known, node, rule, held, axis)
    return Site(known, node, rule, axis).outcome(held)


def _count(node: fx.Node) -> int:
    found = access.value(node)
    return len(found) if isinstance(found, list | tuple) else 1


def _product_and_addend(
    known: Known, node: fx.Node, rule: Meaning, held: Sequence[Placement], axis: str
) -> Outcome:
    """Addmm and its like: the product may be cut where it contracts, the addend then counts."""
    product = replace(PRODUCTS[node.target](Call.of(node)), casts=False)
    factors = product.terms[0].operands if product.terms else ()
    seen = [p if i in factors else WHOLE for i, p in enumerate(held)]
    found = Site(known, node, product, axis).outcome(seen)
    addend = next(i for i in range(len(held)) if i not in factors)
    if found.mistake or found.results != (ADDEND,) or held[addend] == ADDEND:
        return found if found.mistake else Site(known, node, rule, axis).outcome(held)
    both = Meaning(terms=(Term((factors[0],)), rule.terms[0] if rule.terms else Term(())))
    mixed = [ADDEND if i in factors else p for i, p in enumerate(held)]
    return Site(known, node, both, axis).outcome(mixed)


@dataclass(frozen=True)
class Site:
    """One call, its meaning, and the axis it is looked at along."""

    known: Known
    node: fx.Node
    rule: Meaning
    axis: str

    @property
    def read(self) -> tuple[fx.Node, ...]:
        """Its operands."""
        return access.operands(self.node)

    def outcome(self, held: Sequence[Placement]) -> Outcome:
        """Results and mistake for operands of these placements."""
        reads = self.rule.reads
        used = range(len(held)) if reads is None else sorted(reads)
        kinds = {p for i in used if isinstance(p := held[i], Partial)}
        if all(isinstance(held[i], Replicate) for i in used):
            return self.every(WHOLE)
        if not kinds:
            return self.sharded(held, used)
        if len(kinds) > 1:
            return self.every(UNKNOWN, self.blame("wrong-kind", held))
        if not kinds <= set(LINEAR):
            return self.every(UNKNOWN)
        return self.partial(held, kinds.pop())

    def every(self, placement: Placement, mistake: Mistake | None = None) -> Outcome:
        """The same placement for all results."""
        return Outcome((placement,) * _count(self.node), mistake)

    def blame(self, rule: str, held: Sequence[Placement], other: fx.Node | None = None) -> Mistake:
        """A mistake about the first operand that is a partial sum."""
        partial = next(x for x, p in zip(self.read, held, strict=True) if isinstance(p, Partial))
        return Mistake(rule, partial, other)

    def partial(self, held: Sequence[Placement], kind: Partial) -> Outcome:
        """Results where an operand is a partial sum."""
        is_partial = [p == kind for p in held]
        meant = [WHOLE if p == kind else p for p in held]
        terms = self.rule.terms
        if terms is None or not all(_is_linear(term, is_partial) for term in terms):
            mistake = self.blame("nonlinear-on-partial", held)
            return replace(self.outcome(meant), mistake=mistake)
        result: Placement = kind
        for term in terms:
            others = [i for i in term.reads if held[i] != kind]
            scales = any(is_partial[i] for i in term.operands)
            cut = [i for i in others if isinstance(held[i], Shard)] if scales else []
            if cut or (kind == ADDEND and not scales and self.counts_whole(term, held)):
                other = next((self.read[i] for i in cut or term.operands), None)
                mistake = self.blame("missing-reduction", held, other)
                return replace(self.outcome(meant), mistake=mistake)
            if scales and not all(isinstance(held[i], Replicate) for i in others):
                result = UNKNOWN
        return self.every(result)

    def counts_whole(self, term: Term, held: Sequence[Placement]) -> bool:
        """Whether ``term`` joins a whole value to partial sums that nothing adds up later."""
        factors = [self.read[i] for i in term.operands]
        if self.axis in self.known.awaited[self.node] or any(
            x in self.known.zeros for x in factors
        ):
            return False
        ranks = self.known.ranks((self.axis,))
        scaled = any(self.known.is_scaled(x, ranks, term.coefficient) for x in factors)
        return all(isinstance(held[i], Replicate) for i in term.reads) and not scaled

    def sharded(self, held: Sequence[Placement], used: Sequence[int]) -> Outcome:
        """Results where no operand is a partial sum and not all are whole."""
        dims = self.rule.dims
        if dims is None:
            return self.every(UNKNOWN)
        cut = {i: dims.operands[i][p.dim] for i in used if isinstance(p := held[i], Shard)}
        factors = set(cut.values())
        if len(factors - {None}) > 1:
            first, second = self._crossed(cut)
            crossed = Mistake("crossed-shards", self.read[first], self.read[second])
            return self.every(UNKNOWN, crossed)
        if len(factors) != 1 or None in factors:
            return self.every(UNKNOWN)
        (factor,) = factors
        mistake = self._meets_whole(held, used, dims.operands, factor, next(iter(cut)))
        unknown = [i for i in used if isinstance(held[i], Varying)]
        contracted = self.rule.terms is not None and not any(factor in r for r in dims.results)
        if unknown and not (contracted and all(factor in dims.operands[i] for i in unknown)):
            return self.every(UNKNOWN, mistake)
        results = tuple(self._cut(factor, labels) for labels in dims.results)
        (shard, *_), shape = cut, concrete_shape(self.node) if len(results) == 1 else ()
        if self.rule.terms and self.rule.terms[0].map is RESHAPE and isinstance(results[0], Shard):
            before = concrete_shape(self.read[shard])[: dims.operands[shard].index(factor)]
            if _ones(before) != _ones(shape[: results[0].dim]):
                # One head per rank: [tokens, 64] as [tokens, 1, 64] is cut along heads, or not.
                return self.every(UNKNOWN, mistake)
        return Outcome(results, mistake)

    def _crossed(self, cut: Mapping[int, object]) -> tuple[int, int]:
        first, *others = (i for i, factor in cut.items() if factor is not None)
        return first, next(i for i in others if cut[i] != cut[first])

    def _cut(self, factor: int | str | None, labels: Labels) -> Placement:
        if factor in labels:
            return Shard(labels.index(factor))
        return ADDEND if self.rule.terms is not None else UNKNOWN

    def _meets_whole(
        self,
        held: Sequence[Placement],
        used: Sequence[int],
        operands: Sequence[Labels],
        factor: int | str | None,
        shard: int,
    ) -> Mistake | None:
        """A whole operand has the dimension that is cut in the shard, at the shard's size."""
        for i in used:
            whole = factor in operands[i] and self.known.whole(self.read[i], (self.axis,))
            if whole and self.read[i] not in self.known.constants:
                return Mistake("sharded-meets-whole", self.read[i], self.read[shard])
        return None


def _ones(sizes: Sequence[int]) -> int:
    """How many sizes of one stand at the end."""
    return next((i for i, size in enumerate(reversed(sizes)) if size != 1), len(sizes))


def _is_linear(term: Term, is_partial: Sequence[bool]) -> bool:
    """Whether the term is linear in what is partial."""
    return sum(is_partial[i] for i in term.operands) <= 1 and not any(
        is_partial[i] for i in term.fixed
    )
