"""Form analysis: which forms of every carrier are read, given which carriers run unreduced.

A carrier has an unreduced and a reduced form, see ``compiler.analysis.partial_values``. The
unreduced form is the op on unreduced forms; the reduced form

    of a carrier that runs unreduced   is one collective of its unreduced form
    of any other                       is the op on reduced forms

A form that nobody reads need not be computed.

Direction  backward, one look at each value.
Result     ``FormsRead``; the graph is not touched.
Refuses    labels that are no placement, see ``Labels.misfit``.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import cached_property

from torch import fx

from compiler.analysis.partial_values import Carrier
from compiler.analysis.reductions import Facts, reads_shape


@dataclass(frozen=True)
class Readers:
    """Who reads a carrier.

    Attributes:
        linear: carriers that are linear in it.
        others: whether anything else needs its reduced form.
    """

    linear: tuple[fx.Node, ...]
    others: bool

    def demand_reduced(self, unreduced: Set[fx.Node]) -> bool:
        """Whether one of them reads the reduced form, given what runs unreduced."""
        return self.others or any(reader not in unreduced for reader in self.linear)


def readers(node: fx.Node, found: Mapping[fx.Node, Carrier], known: Facts) -> Readers:
    """Who reads the carrier ``node``; what is no carrier reads an addend as it is.

    Joint all_reduces take either form. So does what reads the shape, where both have the same.
    """
    linear: list[fx.Node] = []
    others = False
    for user in node.users:
        if user in found[node].joint or (reads_shape(user) and not known.reduction.scatters):
            continue
        reads = next((w for w in user.users if w in found and found[w].reduces), user)
        if reads in found and node in found[reads].operands:
            linear.append(reads)
        else:
            others = True
    return Readers(tuple(linear), others and not found[node].addend)


@dataclass(frozen=True)
class FormsRead:
    """Carriers whose unreduced, and whose reduced, form is read; inputs stay in any case."""

    unreduced: frozenset[fx.Node]
    reduced: frozenset[fx.Node]


@dataclass(frozen=True, eq=False)
class Labels:
    """Which carriers run unreduced.

    Attributes:
        known: facts about the graph, for one reduction.
        found: the carriers of that reduction.
        unreduced: those that run before it; the others run on reduced operands.
    """

    known: Facts
    found: Mapping[fx.Node, Carrier]
    unreduced: frozenset[fx.Node]

    def misfit(self) -> str:
        """Why these labels are no placement, empty if they are one."""
        for node, carrier in self.found.items():
            if node in self.unreduced and any(x not in self.unreduced for x in carrier.operands):
                return f"%{node.name} is to run unreduced on a reduced operand"
            if node not in self.unreduced and (carrier.pinned or not carrier.operands):
                return f"%{node.name} exists unreduced only"
        return ""

    def demanded(self, node: fx.Node) -> bool:
        """Whether the reduced form of ``node`` is read."""
        return readers(node, self.found, self.known).demand_reduced(self.unreduced)

    @cached_property
    def joint(self) -> frozenset[fx.Node]:
        """All_reduces over orthogonal groups that reduce over this reduction's groups as well."""
        return frozenset(
            user
            for node, carrier in self.found.items()
            for user in carrier.joint
            if node in self.unreduced and not self.demanded(node)
        )

    def starts(self, node: fx.Node) -> bool:
        """Whether ``node`` starts a reduction that is placed anew."""
        return any(w in self.found and self.found[w].reduces for w in node.users)

    def forms_read(self) -> FormsRead:
        """The forms that the graph needs where its reductions are placed by these labels."""
        found = self.found
        unreduced = {node for node in found if node.op == "placeholder"}
        reduced: set[fx.Node] = set()
        for node in reversed(self.known.graph.graph.nodes):
            if node in found:
                if node in self.unreduced and node in reduced:
                    unreduced.add(node)
                held = found[node].operands
                unreduced.update(held if node in unreduced else ())
                reduced.update(held if node in reduced and node not in self.unreduced else ())
                if found[node].reduces or not (node in unreduced or node in reduced):
                    continue
            elif self.starts(node):
                continue
            own = found[node].operands if node in found else ()
            for x in node.all_input_nodes:
                if x in found and x not in own:
                    (unreduced if self._reads_unreduced(node, x) else reduced).add(x)
        return FormsRead(frozenset(unreduced), frozenset(reduced))

    def _reads_unreduced(self, node: fx.Node, x: fx.Node) -> bool:
        """Whether ``node``, which is not linear in the carrier ``x``, gets its unreduced form."""
        if self.found[x].addend or node in self.joint:
            return True
        shape_alone = reads_shape(node) and not self.known.reduction.scatters
        return shape_alone and x in self.unreduced
