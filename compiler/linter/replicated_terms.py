"""What a reduction adds up, term by term: one that is the same on all ranks counts n times.

    sum over ranks of (a_r + b)  =  sum of a_r  +  n b

Direction  backward from every sum, as far as ops are linear in the one operand that varies.
Silent     where the term is scaled by 1 / n on the way, where the reduction is an average, and for
           constants, unless they join what is known to be a partial sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from compiler.analysis.placements import REDUCING
from compiler.ir import access
from compiler.ir.collectives import Collective, collective
from compiler.ir.mesh import ReplicaGroups
from compiler.ir.rules import Term
from compiler.linter.facts import LintFacts, listed
from compiler.linter.finding import Finding


def replicated_terms(facts: LintFacts) -> Iterator[Finding]:
    """Yield findings about terms that reductions count more than once."""
    seen: dict[ReplicaGroups, set[fx.Node]] = {}
    for node in facts.nodes:
        what = facts.collective(node)
        if what and what.kind in REDUCING and what.op == "sum" and node in facts.live:
            groups = facts.graph.mesh.group(what.group)
            yield from SummedTerms(facts, node, what).findings(seen.setdefault(groups, set()))


@dataclass(frozen=True)
class SummedTerms:
    """The terms that one reduction adds up, and how often it counts each."""

    facts: LintFacts
    node: fx.Node
    reduction: Collective

    def count(self, *values: fx.Node) -> int:
        """Return how many ranks of a group are sure to hold the same of all ``values``."""
        axes, group = self.facts.group_axes(self.reduction), self.reduction.group
        names = (group,) if axes is None else axes
        equal = frozenset(names).intersection(*(self.facts.equal(x, names) for x in values))
        if axes is None:
            return self.facts.graph.mesh.group(group).axis_size if equal else 1
        return self.facts.ranks(equal)

    def findings(self, seen: set[fx.Node]) -> Iterator[Finding]:
        """Yield the findings about values not ``seen`` yet."""
        ranks = self.facts.graph.mesh.group(self.reduction.group).axis_size
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
                if any(x in self.facts.zeros for x in factors):
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
            return not any(self.facts.partial_axes(x) for x in operands)
        return any(self.facts.is_scaled(x, extra, term.coefficient) for x in factors)

    def finding(self, node: fx.Node, term: Term, extra: int) -> Finding:
        """Return the finding about a term that is counted ``extra`` times."""
        facts, axes = self.facts, self.facts.group_axes(self.reduction)
        over = listed(axes) if axes is not None else f"group {self.reduction.group!r}"
        first = access.operands(node)[term.operands[0]] if term.operands else None
        name = "a constant" if first is None else facts.name(first)
        again = None if first is None else self.reduced_by(first)
        return facts.finding(
            "replicated-term",
            node,
            f"{facts.op(node)} adds {name}, which is "
            + (f"the {again} over all ranks already" if again else "the same on every rank")
            + f", to what {facts.name(self.node)} = {self.reduction.kind} over {over} adds up: "
            f"it counts {extra} times",
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
