"""Fused kernels among what the second cut may choose: a reduction, the addition and norm behind.

    all values whole       all_reduce+add+norm in place of the all_reduce and the ops
    all values as shares   reduce_scatter+add+norm+all_gather in place of the reduce_scatter, the
                           ops on shares, and the gather of the norm; the sum stays shared

A kernel that takes less than its parts saves the difference where all its values are labelled
alike. To the network that is a node which pays the difference unless they are: an edge that no cut
crosses runs from it to each of the values, or from each of them to it. So the costs stay those of
a minimum cut. They would not if the saving depended on values of both labels; a norm of which all
rows are read only where the plan says so is not counted as fused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass

from torch import fx

from compiler.analysis.cache import cached
from compiler.analysis.norm_regions import NormRegion, Recognizer
from compiler.cost.tables import Fused
from compiler.ir.collectives import Kind, collectives
from compiler.ir.graph import SpmdGraph
from compiler.plan.flow_network import NEVER, FlowNetwork
from compiler.plan.prices import CostTerm, Prices


@dataclass(frozen=True)
class NormBehind:
    """What a fused kernel does behind a sum over ranks.

    Attributes:
        total: the sum.
        inner: the addition and all values of the norm, in order; its rows last.
    """

    total: fx.Node
    inner: tuple[fx.Node, ...]

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        """All values that one kernel gives or makes unnecessary."""
        return (self.total, *self.inner)


@cached
def norms_behind(graph: SpmdGraph, group: str) -> list[NormBehind]:
    """Sums over the ranks of a group with an addition and a norm that one kernel does with them."""
    groups, recognizer, norms = graph.mesh.group(group), Recognizer(graph), []
    for _, what in collectives(graph.graph):
        if what.kind is not Kind.ALL_REDUCE or graph.mesh.group(what.group) != groups:
            continue
        norm = recognizer.fusable(what)
        if isinstance(norm, NormRegion) and what.result is not None:
            norms.append(NormBehind(what.result, norm.rows))
    return norms


@dataclass(frozen=True)
class FusedForm:
    """One kernel, and what it stands for.

    Attributes:
        values: those that must be whole, or all shares.
        shared: which of the two.
        term: the kernel, with its parts.
    """

    values: NormBehind
    shared: bool
    term: CostTerm

    def fits(self, shares: Set[fx.Node]) -> bool:
        """Whether the values are labelled so."""
        return all((n in shares) == self.shared for n in self.values.nodes)

    def add_to(self, network: FlowNetwork, prices: Prices) -> None:
        """The saving, as a node that pays it unless the values are labelled so."""
        saving = self.term.apart(prices) - self.term.cost(prices)
        assert saving >= 0, "a kernel that takes longer than its parts is not run"
        if not saving:
            return
        mark = (self.term.fused, self.values.total)
        network.add_node_cost(
            mark, source=saving if self.shared else 0, sink=0 if self.shared else saving
        )
        for node in self.values.nodes:
            if self.shared:
                network.connect(node, mark, NEVER)
            else:
                network.connect(mark, node, NEVER)


def fused_forms(
    norms: Iterable[NormBehind],
    own: Mapping[fx.Node, tuple[tuple[CostTerm, ...], tuple[CostTerm, ...]]],
    gathers: Mapping[fx.Node, CostTerm],
    sent: Set[fx.Node],
) -> Iterator[FusedForm]:
    """The kernels that the cut may choose.

    Args:
        norms: what may be fused. Of two with a value in common the second is left out.
        own: what each value costs, whole and as shares.
        gathers: values of which somebody reads all rows, whatever the plan -> their all_gather.
        sent: sums for which rows may be sent to experts: there is no reduce_scatter to fuse.
    """
    taken = set[fx.Node]()
    for one in norms:
        if not taken.isdisjoint(one.nodes) or not all(n in own for n in one.nodes):
            continue
        taken.update(one.nodes)
        groups = own[one.total][0][0].groups
        y = one.inner[-1]
        kinds = {False: Fused.ALL_REDUCE_ADD_NORM}
        if y in gathers and one.total not in sent:
            kinds[True] = Fused.REDUCE_SCATTER_ADD_NORM_ALL_GATHER
        for shared, kind in kinds.items():
            parts = [term for n in one.nodes for term in own[n][shared]]
            parts += [gathers[y]] if shared else []
            term = CostTerm(one.total, groups=groups, fused=kind, parts=tuple(parts))
            yield FusedForm(one, shared, term)
