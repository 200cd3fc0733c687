"""Share analysis: which values of each rank are its rows of a value that all ranks could compute.

The author's own sharding, read backward from the all_gathers that end it. A value v of m rows per
rank is this rank's block of W(v), which has m rows for each of n ranks. W(v) of

    a reduce_scatter of x         is the all_reduce of x
    an all_slice of x             is x
    an op that treats rows alike  is the op on W of the operands that carry the rows
    anything else                 is the all_gather of v

Direction  backward, one look at each value; the dimension that counts rows goes along.
Result     node -> Share, for values whose all rows somebody gathers or W of such a value reads.
Refuses    to compute W(v) of an op that mixes rows, states their number, or reads what differs
           between ranks; rows counted behind a dimension that is not of size one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import repeat

from torch import fx

from compiler.analysis.replication import replicated_over, replication
from compiler.analysis.row_shards import over, row_operands
from compiler.ir import access
from compiler.ir.collectives import WAIT, Collective, Kind
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import ReplicaGroups
from compiler.ir.row_ops import AllSlice, all_slice, divides
from compiler.ir.rules.meaning import size_key
from compiler.ir.scale_rows import grows

OWN_ROWS = "ranks have rows of their own"
"""Refusal for what is not an op: an input, or the result of another collective."""


@dataclass(frozen=True)
class Share:
    """One rank's rows of a value.

    Attributes:
        dim: the dimension that counts rows.
        carrying: operands of which W is read -> the dimension that counts their rows.
        conversion: the author's reduce_scatter or all_slice that made it; None for others.
        refusal: why W is gathered, not computed; empty where it is computed.
    """

    dim: int
    carrying: Mapping[fx.Node, int] = field(default_factory=dict)
    conversion: Collective | AllSlice | None = None
    refusal: str = ""


def shares(graph: SpmdGraph, groups: ReplicaGroups) -> dict[fx.Node, Share]:
    """The shares of rows that the author's all_gathers over ``groups`` read, in graph order."""
    return _Sweep(graph, groups).run()


def gathered(graph: SpmdGraph, node: fx.Node, groups: ReplicaGroups) -> fx.Node | None:
    """What ``node`` is the gathered rows of, None for all but results of all_gathers."""
    what = over(graph, node, groups)
    return what.operand if what is not None and what.kind is Kind.ALL_GATHER else None


def shares_rows(graph: SpmdGraph, group: str) -> bool:
    """Whether ranks hold rows of their own of a sum, or of a whole value, by the author's will."""
    groups = graph.mesh.group(group)
    for node in graph.graph.nodes:
        what, cut = over(graph, node, groups), all_slice(node)
        if what is not None and what.kind is Kind.REDUCE_SCATTER:
            return True
        if cut is not None and graph.mesh.group(cut.group) == groups:
            return True
    return False


@dataclass(frozen=True)
class _Sweep:
    graph: SpmdGraph
    groups: ReplicaGroups

    def run(self) -> dict[fx.Node, Share]:
        dims: dict[fx.Node, int] = {}
        shares: dict[fx.Node, Share] = {}
        for node in reversed(self.graph.graph.nodes):
            if node in dims:
                share = self._share(node, dims[node])
                if any(dims.get(x, d) != d for x, d in share.carrying.items()):
                    share = Share(dims[node], refusal=f"{node.target} moves rows")
                shares[node] = share
                dims.update(share.carrying)
                if not share.refusal:  # an op's other results are shares as well
                    others = (u for u in node.users if access.projection(u) is not None)
                    for user in others:
                        shares.setdefault(user, Share(share.dim, {node: share.dim}))
            elif (operand := gathered(self.graph, node, self.groups)) is not None:
                dims.setdefault(operand, 0)
        return {node: shares[node] for node in self.graph.graph.nodes if node in shares}

    def _replicated(self, node: fx.Node) -> bool:
        return replicated_over(replication(self.graph)[node], self.groups)

    def _share(self, node: fx.Node, dim: int) -> Share:
        what, cut = over(self.graph, node, self.groups), all_slice(node)
        if what is not None and what.kind is Kind.REDUCE_SCATTER and dim == 0:
            if divides(self.groups.axis_size, access.shape(what.operand)[0]):
                return Share(dim, conversion=what)
            return Share(dim, refusal="that ranks share its rows evenly is stated nowhere")
        if cut is not None and self._cuts_rows(cut, dim):
            return Share(dim, conversion=cut)
        if access.projection(node) is not None:
            return Share(dim, dict.fromkeys(access.operands(node), dim))
        if cut is not None:
            return Share(dim, refusal=f"{node.target} cuts other rows, or unevenly")
        if node.op != "call_function" or node.target is WAIT:
            return Share(dim, refusal=OWN_ROWS)
        carrying = self._carrying(node, dim)
        if isinstance(carrying, str):
            return Share(dim, refusal=f"{node.target} {carrying}")
        return Share(dim, carrying)

    def _cuts_rows(self, cut: AllSlice, dim: int) -> bool:
        rows, groups = access.shape(cut.operand)[dim], self.graph.mesh.group(cut.group)
        same = groups == self.groups and cut.dim == dim and self._replicated(cut.operand)
        return same and divides(groups.axis_size, rows)

    def _carrying(self, node: fx.Node, dim: int) -> dict[fx.Node, int] | str:
        """The operands whose rows are those of the result, and where; or why there are none."""
        rule = self.graph.meanings.get(node)
        if rule is None:
            return "has no rule"
        if rule.random or rule.rank_dependent:
            return "differs from rank to rank"
        carrying = row_operands(node, rule, repeat(dim))
        if carrying is None:
            return "needs more than this rank's rows"
        for x in access.operands(node):
            if x not in carrying and not self._replicated(x):
                return f"depends on %{x.name}, which differs between ranks"
            if x in carrying and self._replicated(x):
                return f"reads %{x.name} row by row, which has no rows of other ranks"
        if any(size_key(s) != 1 for x, d in carrying.items() for s in _before(x, d)):
            return "counts rows behind a dimension that is not of size one"
        if not grows(node, carrying, self.groups.axis_size, dim):
            return "states how many rows there are"
        return carrying


def _before(node: fx.Node, dim: int) -> access.Shape:
    value = access.value(node)
    tensor = value[0] if isinstance(value, list | tuple) else value
    return tuple(tensor.shape[:dim])
