"""Cut 2: which values ranks hold as shares of rows. A minimum cut over all row forms of one group.

Every value with a share form is computed whole (W, source side) or as shares (S, sink side):

    W                     pay the op, or the all_reduce or all_gather, on all rows
    S                     pay the op on one share, or the reduce_scatter and the padding of rows
                          that ranks cannot share evenly; a gather is saved
    S and read whole      pay one all_gather of the value, once
    W and read as share   free: a rank cuts its share out of what it holds
    a computation between S and S that may be given any rows (``Dispatch``) has a label of its own:
                          S sends rows to the ranks that need them; instead of gathers of its
                          operands and the reduce_scatter of its result, that exchange is paid
    one of several results of an op is labelled as the op is

Prices are integers; a tie is W, but for what the author held as shares (``UnshardRows``) it is S.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from torch import fx

from compiler.analysis.cache import cached
from compiler.analysis.expert_regions import ExpertRegion, region
from compiler.analysis.row_shards import SIZE_READ, RowAssignment, reads_share, row_forms
from compiler.check.row_ownership import Owners, greatest_id, owners
from compiler.ir import access
from compiler.ir.collectives import Kind, collectives
from compiler.ir.graph import SpmdGraph
from compiler.ir.row_ops import AUTHORED
from compiler.plan.flow_network import NEVER, FlowNetwork
from compiler.plan.fused_kernels import FusedForm, NormBehind, fused_forms
from compiler.plan.prices import CostTerm, Prices


@dataclass(frozen=True)
class Dispatch:
    """A computation that gives the same for rows sent to the ranks that need them.

    Attributes:
        region: what it computes; its output is the operand of an all_reduce.
        copies: ranks that a row goes to on average.
    """

    region: ExpertRegion
    copies: Fraction


@cached
def dispatches(graph: SpmdGraph, group: str) -> tuple[dict[fx.Node, Dispatch], dict[fx.Node, str]]:
    """All_reduces whose addends come from rows that may be sent to the ranks that need them.

    And those of which rows are routed, but may not be sent, with the reason.
    """
    groups = graph.mesh.group(group)
    regions, refused = dict[fx.Node, Dispatch](), dict[fx.Node, str]()
    if groups.axis_size == 1:
        return regions, refused
    for _, what in collectives(graph.graph):
        is_sum = what.kind is Kind.ALL_REDUCE and what.op == "sum" and what.result is not None
        if not is_sum or graph.mesh.group(what.group) != groups or len(what.operand.users) != 1:
            continue
        inner = region(graph, what.operand, groups)
        if inner is None or what.result is None or not any(map(greatest_id, inner.inputs)):
            continue
        ownership = owners(graph, groups, inner.inputs, inner.nodes)
        if isinstance(ownership, Owners):
            regions[what.result] = Dispatch(inner, ownership.copies)
        else:
            refused[what.result] = ownership
    return regions, refused


class RowChoice:
    """What there is to choose for the replica groups of one name.

    Args:
        graph: the SPMD graph, reductions placed.
        group: name of the replica groups that share rows.
        allowed: whether a value may be held as shares; others stay whole.
        dispatches: all_reduce of a partial sum -> how its rows may be sent instead of gathered.
        norms: what fused kernels may do behind sums.
        key: term -> what is equal for terms that cost the same, whatever the prices; by default
            every term has a cost of its own.
        works_whole: whether ops that the author computes on shares may run on all rows.
    """

    def __init__(
        self,
        graph: SpmdGraph,
        group: str,
        *,
        allowed: Callable[[fx.Node], bool] = lambda _: True,
        dispatches: Mapping[fx.Node, Dispatch] | None = None,
        norms: Sequence[NormBehind] = (),
        key: Callable[[CostTerm], Hashable] = lambda term: term,
        works_whole: bool = True,
    ) -> None:
        """Looks at the graph once, for any number of prices."""
        self.graph, self.group = graph, group
        self.groups = graph.mesh.group(group)
        self.forms = {
            node: form
            for node, form in row_forms(graph, self.groups).items()
            if allowed(node) and allowed(access.computed_by(node))
        }
        self.dispatches = {n: d for n, d in (dispatches or {}).items() if n in self.forms}
        self.norms, self.key, self.works_whole = norms, key, works_whole
        self.authored = {n for n in self.forms if self.groups in n.meta.get(AUTHORED, ())}
        self._sent = {d.region.output: d for d in self.dispatches.values()}
        self._reads = {n: d.region.output for d in self.dispatches.values() for n in d.region.nodes}

    def cheapest(self, prices: Prices) -> frozenset[fx.Node]:
        """The values to hold as shares, and partial sums for which rows are sent."""
        shared = self._network(prices).sink_side()
        return frozenset(n for n in (*self.forms, *self._sent) if n in shared)

    def cost_terms(self, shares: Set[fx.Node]) -> Iterator[CostTerm]:
        """Yield the cost terms of all values with a share form, given which are shares."""
        fused = [form for form in self.fused if form.fits(shares)]
        yield from (form.term for form in fused)
        parts = {part for form in fused for part in form.term.parts}
        for term in self._apart(shares):
            if term not in parts:
                yield term

    def _apart(self, shares: Set[fx.Node]) -> Iterator[CostTerm]:
        """Yield them without fused kernels."""
        for node in self.forms:
            if self._sends(node, shares):
                yield self._dispatch(node)
            else:
                yield from self._own[node][node in shares]
            if node in shares and access.is_tensor(node) and self._read_whole(node, shares):
                yield self._gather(node)

    @cached_property
    def fused(self) -> tuple[FusedForm, ...]:
        """Kernels that may take the place of others."""
        gathers = {n: self._gather(n) for n, (_, others) in self._readers.items() if others}
        sent = self.dispatches.keys()
        return tuple(fused_forms(self.norms, self._own, gathers, sent))

    def assignment(self, shares: Set[fx.Node]) -> RowAssignment:
        """Return the choice as an assignment of placements."""
        sent = self._sent.keys() & shares
        return RowAssignment(self.graph, self.group, frozenset(shares - sent), frozenset(sent))

    def _sends(self, node: fx.Node, shares: Set[fx.Node]) -> bool:
        """Whether rows are sent for the partial sum that the all_reduce ``node`` adds up."""
        dispatch = self.dispatches.get(node)
        return dispatch is not None and dispatch.region.output in shares

    def dispatch_cost(self, node: fx.Node, prices: Prices) -> tuple[int, int]:
        """What it costs to send rows for the sum ``node``, and what to gather and scatter all."""
        rows = self.dispatches[node].region.inputs
        all_rows = [*map(self._gather, rows), *self._own[node][True]]
        return self._dispatch(node).cost(prices), sum(term.cost(prices) for term in all_rows)

    def _dispatch(self, node: fx.Node) -> CostTerm:
        dispatch = self.dispatches[node]
        return CostTerm(
            node, Kind.ALL_TO_ALL, self.groups, rows=dispatch.region.inputs, copies=dispatch.copies
        )

    def _read_whole(self, node: fx.Node, shares: Set[fx.Node]) -> bool:
        """Whether somebody reads all rows of a value that is held as shares."""
        linked, others = self._readers[node]
        return others or any(reader not in shares for reader in linked)

    @cached_property
    def _readers(self) -> dict[fx.Node, tuple[list[fx.Node], bool]]:
        """Readers that can do with a share, and whether there are others."""
        readers = {}
        for node in self.forms:
            linked, others = [], False
            for user in node.users:
                form = self.forms.get(user)
                if form is not None and node in form.carrying:
                    linked.append(user)
                elif user in self._reads:
                    linked.append(self._reads[user])
                elif user.target is not SIZE_READ:
                    others |= not reads_share(self.graph, user, self.groups)
            readers[node] = list(dict.fromkeys(linked)), others
        return readers

    @cached_property
    def _own(self) -> dict[fx.Node, tuple[tuple[CostTerm, ...], tuple[CostTerm, ...]]]:
        """What each value itself costs, whole and as shares."""
        terms: dict[fx.Node, tuple[tuple[CostTerm, ...], tuple[CostTerm, ...]]] = {}
        for node, form in self.forms.items():
            n = self.groups.axis_size
            if form.communicates is None:
                terms[node] = (CostTerm(node),), (CostTerm(node, shares=n),)
            elif form.communicates.kind is Kind.ALL_GATHER:
                terms[node] = (self._gather(node),), ()
            else:
                scatter = CostTerm(node, Kind.REDUCE_SCATTER, self.groups)
                pad = CostTerm(node, shares=n, pads=True)
                terms[node] = (CostTerm(node, Kind.ALL_REDUCE, self.groups),), (scatter, pad)
        return terms

    def _gather(self, node: fx.Node) -> CostTerm:
        return CostTerm(node, Kind.ALL_GATHER, self.groups)

    @cached_property
    def _kinds(self) -> tuple[list[tuple[tuple[CostTerm, ...], ...]], dict[fx.Node, int]]:
        """Values that cost the same: cost terms whole, shared and gathered; which is which.

        Only tensors are gathered.
        """
        places: dict[Hashable, int] = {}
        terms: list[tuple[tuple[CostTerm, ...], ...]] = []
        at = {}
        for node in self.forms:
            gather = (self._gather(node),) if access.is_tensor(node) else ()
            parts = (*self._own[node], gather)
            key = tuple([tuple(map(self.key, part)) for part in parts])
            at[node] = places.setdefault(key, len(terms))
            if at[node] == len(terms):
                terms.append(parts)
        return terms, at

    def _network(self, prices: Prices) -> FlowNetwork:
        """Edges run from what is whole to what is shared.

        A gather that one reader may ask for needs no node of its own.
        """
        kinds, at = self._kinds
        costs = [[sum(i.cost(prices) for i in part) for part in parts] for parts in kinds]
        network = FlowNetwork()
        for form in self.fused:
            form.add_to(network, prices)
        for node in self.forms:
            whole, share, gather = costs[at[node]]
            if node in self.dispatches:
                sender = self.dispatches[node].region.output
                network.add_node_cost(sender, sink=self._dispatch(node).cost(prices))
                network.connect(sender, node, share)
                network.connect(node, sender, NEVER)
                share = 0
            network.add_node_cost(node, source=whole, sink=share)
            linked, others = self._readers[node]
            if not kinds[at[node]][2]:  # all results of an op, or none
                for reader in linked:
                    network.connect(node, reader)
                    network.connect(reader, node)
                network.add_node_cost(node, sink=NEVER if others else 0)
                continue
            if others:
                network.add_node_cost(node, sink=gather)
            elif len(linked) == 1:
                network.connect(linked[0], node, gather)
            elif linked:
                gathered = ("all_gather of", node)
                network.connect(gathered, node, gather)
                for reader in linked:
                    network.connect(reader, gathered)
        self._keep_authored(network)
        return network

    def _keep_authored(self, network: FlowNetwork) -> None:
        """What the author holds as shares stays so at equal cost, and work always, if so asked."""
        for node in () if self.works_whole else self.authored:
            network.add_node_cost(node, source=0 if self.forms[node].communicates else NEVER)
        network.prefer_sink(self.authored)


def shard_rows(
    graph: SpmdGraph,
    group: str,
    prices: Prices,
    *,
    allowed: Callable[[fx.Node], bool] = lambda _: True,
) -> RowAssignment:
    """Return the cheapest choice of values to hold as shares; see ``RowChoice``."""
    choice = RowChoice(graph, group, allowed=allowed)
    return choice.assignment(choice.cheapest(prices))
