"""Partial assignments: which partial values are computed Partial, and which forms that demands.

A partial value has two forms, see ``compiler.analysis.partial_values``. The Partial form is the op
on Partial operands; the Replicate form

    of a value that is assigned Partial   is one collective of its Partial form
    of any other                          is the op on Replicate operands

A form that nobody reads need not be computed.

Direction  backward, one look at each value.
Result     two sets of values; the graph is not touched.
Refuses    assignments that no graph can compute, see ``PartialAssignment.misfit``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import fx

from compiler.analysis.cache import cached
from compiler.analysis.partial_values import PartialValues, partial_values
from compiler.analysis.reductions import ReductionFacts, reads_shape


@dataclass(frozen=True)
class Readers:
    """Who reads a partial value.

    Attributes:
        linear: partial values that are linear in it.
        others: whether anything else needs its Replicate form.
    """

    linear: tuple[fx.Node, ...]
    others: bool


@cached
def readers(facts: ReductionFacts) -> Mapping[fx.Node, Readers]:
    """Return who reads each partial value; other values read an addend as it is.

    Joint all_reduces take either form. So does what reads the shape, where both have the same.
    """
    values, scatters = partial_values(facts), facts.reduction.scatters
    result = {}
    for node, value in values.items():
        linear: list[fx.Node] = []
        others = False
        for user in node.users:
            if user in value.joint or (reads_shape(user) and not scatters):
                continue
            reader = next((w for w in user.users if w in values and values[w].reduces), user)
            if reader in values and node in values[reader].operands:
                linear.append(reader)
            else:
                others = True
        result[node] = Readers(tuple(linear), others and not value.addend)
    return result


@dataclass(frozen=True)
class PartialAssignment:
    """A placement, Partial or Replicate, for every partial value of one reduction.

    Attributes:
        facts: about the graph, for that reduction.
        partial: the values computed before their reduction; the others are Replicate.
    """

    facts: ReductionFacts
    partial: frozenset[fx.Node]

    @property
    def values(self) -> PartialValues:
        """What there is to assign."""
        return partial_values(self.facts)

    @property
    def keeps(self) -> bool:
        """Whether every reduction stands where the author put it."""
        author = {n for n, value in self.values.items() if value.addend or value.reduces}
        return self.partial == author and not self.joint

    def misfit(self) -> str:
        """Return why no graph can compute this assignment, empty if one can."""
        if others := sorted(self.partial - self.values.keys()):
            return f"%{others[0].name} is not a {self.facts.reduction.partial}"
        for node, value in self.values.items():
            if node in self.partial and any(x not in self.partial for x in value.operands):
                return f"%{node.name} is to be Partial, but reads a Replicate operand"
            if node not in self.partial and (value.pinned or not value.operands):
                return f"%{node.name} is Partial in the graph, and cannot be reduced earlier"
        return ""

    def demanded(self, node: fx.Node) -> bool:
        """Return whether the Replicate form of ``node`` is read."""
        reading = readers(self.facts)[node]
        return reading.others or not self.partial.issuperset(reading.linear)

    @cached_property
    def joint(self) -> frozenset[fx.Node]:
        """All_reduces over orthogonal groups that reduce over this reduction's groups as well."""
        return frozenset(
            user
            for node, value in self.values.items()
            for user in value.joint
            if node in self.partial and not self.demanded(node)
        )

    def starts(self, node: fx.Node) -> bool:
        """Return whether ``node`` starts a reduction that is placed anew."""
        return any(w in self.values and self.values[w].reduces for w in node.users)

    def forms_read(self) -> tuple[frozenset[fx.Node], frozenset[fx.Node]]:
        """Return the values whose Partial, and whose Replicate, form is read; inputs always are."""
        values = self.values
        partial = {node for node in values if node.op == "placeholder"}
        reduced: set[fx.Node] = set()
        for node in reversed(self.facts.graph.graph.nodes):
            if node in values:
                if node in self.partial and node in reduced:
                    partial.add(node)
                operands = values[node].operands
                partial.update(operands if node in partial else ())
                reduced.update(operands if node in reduced and node not in self.partial else ())
                if values[node].reduces or not (node in partial or node in reduced):
                    continue
            elif self.starts(node):
                continue
            own = values[node].operands if node in values else ()
            for x in node.all_input_nodes:
                if x in values and x not in own:
                    (partial if self._reads_partial(node, x) else reduced).add(x)
        return frozenset(partial), frozenset(reduced)

    def _reads_partial(self, node: fx.Node, x: fx.Node) -> bool:
        """Return whether ``node``, which is not linear in ``x``, gets its Partial form."""
        if self.values[x].addend or node in self.joint:
            return True
        shape_alone = reads_shape(node) and not self.facts.reduction.scatters
        return shape_alone and x in self.partial
