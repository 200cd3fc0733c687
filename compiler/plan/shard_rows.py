"""Cut 2: which values ranks hold as shares of rows. A minimum cut over all row forms of one group.

Every value with a share form is computed whole (W, source side) or as shares (S, sink side):

    W                     pay the op, or the all_reduce or all_gather, on all rows
    S                     pay the op on one share, or the reduce_scatter; a gather is saved
    S and read whole      pay one all_gather of the value, once
    W and read as share   free: a rank cuts its share out of what it holds
    one of several results of an op is labelled as the op is

Prices are integers; a tie is W.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from functools import cached_property

import networkx as nx
from torch import fx

from compiler.analysis.rows import SIZE_READ, RowForm, reads_share, row_forms
from compiler.ir import access
from compiler.ir.collectives import Kind
from compiler.ir.graph import SpmdGraph
from compiler.ir.text import numbers
from compiler.plan.comm_plan import RowStage
from compiler.plan.prices import Prices

WHOLE, SHARES = "whole", "shares"


class RowChoice:
    """What there is to choose for the replica groups of one name.

    Args:
        graph: the SPMD graph, reductions placed.
        group: name of the replica groups that share rows.
        allowed: whether a value may be held as shares; others stay whole.
    """

    def __init__(
        self, graph: SpmdGraph, group: str, *, allowed: Callable[[fx.Node], bool] = lambda _: True
    ) -> None:
        """Looks at the graph once, for any number of prices."""
        self.graph, self.group = graph, group
        self.groups = graph.mesh.group(group)
        self.forms = {n: form for n, form in row_forms(graph, self.groups).items() if allowed(n)}

    def cheapest(self, prices: Prices) -> frozenset[fx.Node]:
        """The values to hold as shares."""
        _, (_, reached) = nx.minimum_cut(self._network(prices), WHOLE, SHARES)
        return frozenset(n for n in self.forms if n in reached)

    def price(self, shares: Set[fx.Node], prices: Prices) -> int:
        """What all values with a share form cost, given which are shares."""
        own = sum(self._own(node, prices)[node in shares] for node in self.forms)
        return own + sum(
            prices.communication(Kind.ALL_GATHER, node, self.groups)
            for node in shares
            if access.is_tensor(node) and self._read_whole(node, shares)
        )

    def stage(self, shares: Set[fx.Node]) -> RowStage:
        """The choice as part of a plan."""
        number = numbers(self.graph.graph)
        kinds = [form.communicates.kind for n, form in self.forms.items()
                 if n in shares and form.communicates is not None]  # fmt: skip
        return RowStage(
            group=self.group,
            shares=tuple(number[n] for n in self.forms if n in shares),
            reduce_scatters=kinds.count(Kind.ALL_REDUCE),
            all_gathers=sum(access.is_tensor(n) and self._read_whole(n, shares) for n in shares),
        )

    def _read_whole(self, node: fx.Node, shares: Set[fx.Node]) -> bool:
        """Whether somebody reads all rows of a value that is held as shares."""
        linked, others = self._readers[node]
        return others or any(reader not in shares for reader in linked)

    @cached_property
    def _readers(self) -> dict[fx.Node, tuple[list[fx.Node], bool]]:
        """Readers that can do with a share, and whether there are others."""
        found = {}
        for node in self.forms:
            linked, others = [], False
            for user in node.users:
                form = self.forms.get(user)
                if form is not None and node in form.carrying:
                    linked.append(user)
                elif user.target is not SIZE_READ:
                    others |= not reads_share(self.graph, user, self.groups)
            found[node] = linked, others
        return found

    def _own(self, node: fx.Node, prices: Prices) -> tuple[int, int]:
        """Price of the value itself, whole and as shares."""
        form: RowForm = self.forms[node]
        if form.communicates is None:
            return tuple(prices.computation(node, n) for n in (1, self.groups.axis_size))  # type: ignore[return-value]
        if form.communicates.kind is Kind.ALL_GATHER:
            return prices.communication(Kind.ALL_GATHER, node, self.groups), 0
        kinds = (Kind.ALL_REDUCE, Kind.REDUCE_SCATTER)
        return tuple(prices.communication(kind, node, self.groups) for kind in kinds)  # type: ignore[return-value]

    def _network(self, prices: Prices) -> nx.DiGraph[object]:
        """Edges run from what is whole to what is shared; one without a capacity is never cut.

        A gather that one reader may ask for needs no node of its own.
        """
        network: nx.DiGraph[object] = nx.DiGraph()
        network.add_nodes_from((WHOLE, SHARES))
        for node in self.forms:
            whole, share = self._own(node, prices)
            linked, others = self._readers[node]
            if not access.is_tensor(node):  # all results of an op, or none
                network.add_edges_from((node, reader) for reader in linked)
                network.add_edges_from((reader, node) for reader in linked)
                network.add_edges_from([(WHOLE, node)] if others else [])
                network.add_edge(node, SHARES, capacity=whole - share)
                continue
            gather = prices.communication(Kind.ALL_GATHER, node, self.groups)
            if others:
                share += gather
            elif len(linked) == 1:
                network.add_edge(linked[0], node, capacity=gather)
            elif linked:
                gathered = ("all_gather of", node)
                network.add_edge(gathered, node, capacity=gather)
                network.add_edges_from((reader, gathered) for reader in linked)
            if share > whole:
                network.add_edge(WHOLE, node, capacity=share - whole)
            else:
                network.add_edge(node, SHARES, capacity=whole - share)
        return network


def shard_rows(
    graph: SpmdGraph,
    group: str,
    prices: Prices,
    *,
    allowed: Callable[[fx.Node], bool] = lambda _: True,
) -> RowStage:
    """The cheapest choice of values to hold as shares; see ``RowChoice``."""
    choice = RowChoice(graph, group, allowed=allowed)
    return choice.stage(choice.cheapest(prices))
