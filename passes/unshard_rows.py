"""Compute on all rows what the author computes on each rank's own, between conversions of his.

Before    %2: f32[4, 4] {tp: S(0)} = comm.reduce_scatter(%0) {axis = tp, op = sum}
          %3: f32[4, 4] {tp: S(0)} = aten.silu(%2)
          %4: f32[8, 4] {tp: R} = comm.all_gather(%3) {axis = tp}
After     %2: f32[8, 4] {tp: R} = comm.all_reduce(%0) {axis = tp, op = sum}
          %3: f32[8, 4] {tp: R} = aten.silu(%2)

Law       f row by row: f(x)[rows] = f(x[rows]);  reduce_scatter = own rows of all_reduce;
          all_gather of own rows = all rows. The laws of shard-rows, from right to left.
Exact     bit by bit but for the order of additions in an all_reduce.
Requires  some all_gather reads rows that a reduce_scatter or all_slice of the same ranks gave.
Ensures   every value computed on all rows is marked with the ranks that shared it, so that the
          second cut may choose again; whoever reads own rows reads an all_slice.
Saves     nothing by itself: the second cut restores what the author shared unless less costs less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from compiler.analysis.local_shards import OWN_ROWS, Share, gathered, shares, shares_rows
from compiler.ir import access
from compiler.ir.collectives import OPS, insert_all_reduce
from compiler.ir.graph import SpmdGraph
from compiler.ir.graph_copy import GraphCopy
from compiler.ir.redistribute import RowSharing
from compiler.ir.remark import PassResult, Remark, RemarkKind
from compiler.ir.row_ops import AUTHORED, AllSlice
from compiler.ir.scale_rows import grown

REDUCED = "reduce_scatter became an all_reduce"
KEPT = "all_gather of its rows kept"


@dataclass(frozen=True)
class UnshardRows:
    """Rewrites what the ranks of one group share.

    Attributes:
        group: name of the replica groups.
    """

    name: ClassVar[str] = "unshard-rows"
    group: str

    def apply(self, graph: SpmdGraph) -> PassResult:
        """The graph with the author's shares computed whole."""
        if not shares_rows(graph, self.group):
            return PassResult(graph, (), changed=False)
        every = shares(graph, graph.mesh.group(self.group))
        read = {x for share in every.values() for x in share.carrying}
        needed = {node: x for node, x in every.items() if node in read or not x.refusal}
        remarks = [
            Remark(RemarkKind.MISSED, f"%{node.name}", f"{KEPT}: {share.refusal}",
                   access.layer_path(node))
            for node, share in every.items()
            if share.refusal not in ("", OWN_ROWS)
        ]  # fmt: skip
        if not any(share.conversion for share in needed.values()):
            return PassResult(graph, tuple(remarks), changed=False)
        writer = _Writer(graph, self.group, needed)
        target = writer.written()
        return PassResult(target, (*writer.remarks, *remarks), changed=True)


class _Writer:
    """Writes the target: of a value all its rows, what ranks hold of it, or both."""

    def __init__(self, graph: SpmdGraph, group: str, shares: Mapping[fx.Node, Share]) -> None:
        self.graph, self.shares, self.groups = graph, shares, graph.mesh.group(group)
        self.sharing, self.copy = RowSharing(group, self.groups.axis_size), GraphCopy()
        self.whole: dict[fx.Node, fx.Node] = {}
        self.own: dict[fx.Node, fx.Node] = {}
        self.remarks: list[Remark] = []

    def written(self) -> SpmdGraph:
        """The target."""
        for node in self.graph.graph.nodes:
            share = self.shares.get(node)
            if share is not None and not share.refusal:
                self.whole[node] = self._computed(node, share)
            elif (operand := gathered(self.graph, node, self.groups)) and operand in self.shares:
                self.own[node] = self.whole[operand]
            elif not self._becomes_void(node):
                self.own[node] = self.copy.add_recomputed(node, self._own)
            if share is not None and share.refusal:
                self.whole[node] = self._gathered(node, share)
        return self.graph.with_graph(self.copy.target, self.copy.origins)

    def _becomes_void(self, node: fx.Node) -> bool:
        """Whether ``node`` starts a collective of which nobody needs the result."""
        return node.target in OPS and all(
            user in self.shares or gathered(self.graph, user, self.groups) in self.shares
            for user in node.users
        )

    def _computed(self, node: fx.Node, share: Share) -> fx.Node:
        """All rows of a share."""
        what = share.conversion
        if isinstance(what, AllSlice):
            return self._own(what.operand)
        if what is not None:
            result = insert_all_reduce(
                self.copy.target, self._own(what.operand), what.op, what.group
            )
            result.meta = {**node.meta, "val": access.tensor(result)}
            layer = access.layer_path(what.operand)
            self.remarks.append(Remark(RemarkKind.PASSED, f"%{result.name}", REDUCED, layer))
        else:
            result = grown(
                self.copy.target, node,
                lambda x: self.whole[x] if x in share.carrying else self._own(x), share.dim,
            )  # fmt: skip
        return self._marked(result)

    def _gathered(self, node: fx.Node, share: Share) -> fx.Node:
        """All rows of what each rank has rows of its own of."""
        rows = access.shape(node)[share.dim] * self.groups.axis_size
        result = self.sharing.gather(self.own[node], rows, share.dim)
        waits = [wait for start in node.users for wait in start.users]
        by_author = any(gathered(self.graph, wait, self.groups) is node for wait in waits)
        return result if by_author else self._marked(result)

    def _marked(self, result: fx.Node) -> fx.Node:
        result.meta[AUTHORED] = (*result.meta.get(AUTHORED, ()), self.groups)
        return result

    def _own(self, node: fx.Node) -> fx.Node:
        """What ranks hold of a value, cut out of the whole where that is computed."""
        if node not in self.own:
            dim, whole = self.shares[node].dim, self.whole[node]
            self.own[node] = self.sharing.cut(whole, access.shape(whole)[dim], dim)
        return self.own[node]
