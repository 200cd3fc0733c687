"""What a reduction adds up, term by term: one that is the same on all ranks counts n times.

    sum over ranks of (a_r + b)  =  sum of a_r  +  n b

Direction  backward from every sum, as far as ops are linear in the one operand that varies.
Silent     where the term is scaled by 1 / n on the way, where the reduction is an average, and for
           constants, unless they join what is known to be a partial sum.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from compiler.analysis.replication import replicated_over
from compiler.ir import access
from compiler.ir.collectives import WAIT, Collective
from compiler.ir.mesh import ReplicaGroups
from compiler.ir.placement import Partial
from compiler.ir.rules import Term
from compiler.linter.facts import REDUCING, Known, listed
from compiler.linter.finding import Finding


def counted_terms(known: Known) -> Iterator[Finding]:
    """Terms that reductions count more than once."""
    seen: dict[ReplicaGroups, set[fx.Node]] = {}
    for node in known.graph.graph.nodes:
        what = known.collective(node)
        if what is None or what.kind not in REDUCING or what.op != "sum" or node not in known.live:
            continue
        groups = known.graph.mesh.group(what.group)
        yield from Sum(known, node, what, groups).counted(seen.setdefault(groups, set()))


class Sum:
    """One reduction, and how often it counts a value."""

    def __init__(
        self, known: Known, node: fx.Node, what: Collective, groups: ReplicaGroups
    ) -> None:
        self.known, self.node, self.what, self.groups = known, node, what, groups
        self.axes = known.group_axes(what)

    def times(self, *values: fx.Node) -> int:
        """How many ranks of a group are sure to hold the same of all ``values``."""
        if self.axes is None:
            same = all(replicated_over(self.known.classes[x], self.groups) for x in values)
            return self.groups.axis_size if same else 1
        common = set(self.axes)
        for x in values:
            common &= self.known.whole(x, self.axes)
        return self.known.ranks(common)

    def counted(self, seen: set[fx.Node]) -> Iterator[Finding]:
        """The findings about values not ``seen`` yet."""
        stack = [self.what.operand]
        while stack:
            node = stack.pop()
            rule = self.known.meanings.get(node)
            if node in seen or rule is None or rule.terms is None or rule.rank_dependent:
                continue
            seen.add(node)
            read, times = access.operands(node), self.times(node)
            for term in rule.terms:
                reads = [read[i] for i in term.reads]
                if any(read[i] in self.known.zeros for i in term.operands):
                    continue
                extra = self.times(*reads) // times
                if extra > 1 and not self.is_meant(node, term, extra):
                    yield self.finding(node, term, extra)
                varying = [x for x in reads if self.times(x) < self.groups.axis_size]
                if len(varying) == 1 and varying[0] in [read[i] for i in term.operands]:
                    stack.append(varying[0])

    def is_meant(self, node: fx.Node, term: Term, extra: int) -> bool:
        """Whether the term is scaled to count once, or too likely a constant of no meaning."""
        factors = [access.operands(node)[i] for i in term.operands]
        if all(x in self.known.constants for x in factors):
            states = (p for x in access.operands(node) for p in self.known.states[x].values())
            return not any(isinstance(p, Partial) for p in states)
        return any(self.known.is_scaled(x, extra, term.coefficient) for x in factors)

    def finding(self, node: fx.Node, term: Term, extra: int) -> Finding:
        """A term that is counted ``extra`` times."""
        known, read = self.known, access.operands(node)
        over = listed(self.axes) if self.axes is not None else f"group {self.what.group!r}"
        first = next((read[i] for i in term.operands), None)
        name = "a constant" if first is None else known.name(first)
        again = None if first is None else self.reduced_by(first)
        return known.finding(
            "replicated-term",
            node,
            f"{known.op(node)} adds {name}, which is "
            + (f"the {again} over all ranks already" if again else "the same on every rank")
            + f", to what {known.name(self.node)} = {self.what.kind} over {over} adds up: "
            f"it counts {extra} times",
            f"add {name} after {known.name(self.node)}, on one rank only, or scaled by 1/{extra}"
            + ("; or leave out its own reduction" if again == "sum" else ""),
        )

    def reduced_by(self, node: fx.Node) -> str | None:
        """The kind of reduction over the same ranks in whose result ``node`` is linear."""
        steps = [node, *(access.operands(s)[i] for s, t, _ in self.known.linear_past(node)
                         for i in t.operands)]  # fmt: skip
        for step in steps:
            started = self.known.collective(access.operands(step)[0]) if _is_wait(step) else None
            if started is None or started.kind not in REDUCING:
                continue
            return started.op if self.known.graph.mesh.group(started.group) == self.groups else None
        return None


def _is_wait(node: fx.Node) -> bool:
    return node.target is WAIT
