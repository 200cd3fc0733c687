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

from collections.abc import Callable, Mapping

import networkx as nx
from torch import fx

from compiler.analysis.rows import SIZE_READ, RowForm, reads_share, row_forms
from compiler.ir import access
from compiler.ir.collectives import Kind
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import ReplicaGroups
from compiler.ir.text import numbers
from compiler.plan.comm_plan import RowStage
from compiler.plan.prices import Prices

WHOLE, SHARES = "whole", "shares"


def shard_rows(
    graph: SpmdGraph,
    group: str,
    prices: Prices,
    *,
    allowed: Callable[[fx.Node], bool] = lambda _: True,
) -> RowStage:
    """The cheapest choice of values to hold as shares.

    Args:
        graph: the SPMD graph, reductions placed.
        group: name of the replica groups that share rows.
        prices: of collectives and ops.
        allowed: whether a value may be held as shares; others stay whole.
    """
    groups = graph.mesh.group(group)
    forms = {n: form for n, form in row_forms(graph, groups).items() if allowed(n)}
    _, (_, reached) = nx.minimum_cut(_network(graph, groups, forms, prices), WHOLE, SHARES)
    shared = {n for n in forms if n in reached}
    number = numbers(graph.graph)
    gathered = [n for n in forms if n in shared and read_whole(graph, n, groups, forms, shared)]
    kinds = [form.communicates.kind for n, form in forms.items() if n in shared
             and form.communicates is not None]  # fmt: skip
    return RowStage(
        group=group,
        shares=tuple(number[n] for n in forms if n in shared),
        reduce_scatters=kinds.count(Kind.ALL_REDUCE),
        all_gathers=len(gathered),
    )


def read_whole(
    graph: SpmdGraph,
    node: fx.Node,
    groups: ReplicaGroups,
    forms: Mapping[fx.Node, RowForm],
    shared: set[fx.Node],
) -> bool:
    """Whether somebody reads all rows of a value that is held as shares."""
    linked, others = _readers(graph, node, groups, forms)
    return others or any(reader not in shared for reader in linked)


def _readers(
    graph: SpmdGraph, node: fx.Node, groups: ReplicaGroups, forms: Mapping[fx.Node, RowForm]
) -> tuple[list[fx.Node], bool]:
    """Readers that can do with a share, and whether there are others."""
    linked, others = [], False
    for user in node.users:
        form = forms.get(user)
        if form is not None and node in form.carrying:
            linked.append(user)
        elif user.target is not SIZE_READ and not reads_share(graph, user, groups):
            others = True
    return linked, others


def _network(
    graph: SpmdGraph, groups: ReplicaGroups, forms: Mapping[fx.Node, RowForm], prices: Prices
) -> nx.DiGraph[object]:
    """Edges run from what is whole to what is shared; an edge without a capacity is never cut."""
    network: nx.DiGraph[object] = nx.DiGraph()
    network.add_nodes_from((WHOLE, SHARES))
    for node, form in forms.items():
        whole, share = _own_price(node, form, groups, prices)
        network.add_edge(WHOLE, node, capacity=max(share - whole, 0))
        network.add_edge(node, SHARES, capacity=max(whole - share, 0))
        linked, others = _readers(graph, node, groups, forms)
        gathered = ("all_gather of", node)
        if access.is_tensor(node):
            price = prices.communication(Kind.ALL_GATHER, node, groups)
            network.add_edge(gathered, node, capacity=price)
        else:
            network.add_edge(gathered, node)
            network.add_edges_from((node, reader) for reader in linked)
        network.add_edges_from((reader, gathered) for reader in linked)
        if others:
            network.add_edge(WHOLE, gathered)
    return network


def _own_price(
    node: fx.Node, form: RowForm, groups: ReplicaGroups, prices: Prices
) -> tuple[int, int]:
    """Price of the value itself, whole and as shares."""
    if form.communicates is None:
        return prices.computation(node, 1), prices.computation(node, groups.axis_size)
    if form.communicates.kind is Kind.ALL_GATHER:
        return prices.communication(Kind.ALL_GATHER, node, groups), 0
    return tuple(  # type: ignore[return-value]
        prices.communication(kind, node, groups) for kind in (Kind.ALL_REDUCE, Kind.REDUCE_SCATTER)
    )
