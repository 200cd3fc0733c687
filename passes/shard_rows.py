"""Hold values as shares of rows, one per rank, where an assignment says so.

Before    %2: f32[8, 4] {tp: R} = comm.all_reduce(%0) {axis = tp, op = sum}
          %3: f32[8, 4] {tp: R} = aten.silu(%2)
After     %2: f32[4, 4] {tp: S(0)} = comm.reduce_scatter(%0) {axis = tp, op = sum}
          %3: f32[4, 4] {tp: S(0)} = aten.silu(%2)
          %4: f32[8, 4] {tp: R} = comm.all_gather(%3) {axis = tp}

Law       f row by row: f(x)[rows] = f(x[rows]);  reduce_scatter = own rows of all_reduce;
          all_gather of own rows = all rows.
Exact     bit by bit but for the order of additions in a reduce_scatter.
Requires  an assignment for this graph. Rows that ranks cannot share evenly are padded before they
          are scattered, and cut off after they are gathered.
Ensures   every value that is not held as shares is computed from the same whole values as before.
Saves     what the assignment was chosen for: work on rows, and all_gathers where nobody reads all
          rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import fx

from compiler.analysis.row_shards import (
    SIZE_READ,
    RowAssignment,
    RowForm,
    reads_share,
    rows_and_dim,
    share_of,
)
from compiler.errors import PlanError
from compiler.ir import access
from compiler.ir.collectives import OPS, Kind
from compiler.ir.graph import SpmdGraph
from compiler.ir.graph_copy import GraphCopy
from compiler.ir.redistribute import RowSharing
from compiler.ir.remark import PassResult, Remark, RemarkKind
from compiler.ir.row_ops import AUTHORED
from compiler.ir.scale_rows import state_sizes

SCATTERED = "all_reduce became a reduce_scatter"
KEPT = "reduce_scatter kept: rows stay shared as the author shares them"
SENT = "rows go to the ranks that own their experts and back, by all_to_all: no all_reduce"


@dataclass(frozen=True)
class ShardRows:
    """Applies one assignment.

    Attributes:
        assignment: of Replicate or shards to values of the graph that the pass is applied to.
    """

    name: ClassVar[str] = "shard-rows"
    assignment: RowAssignment

    def apply(self, graph: SpmdGraph) -> PassResult:
        """Return the graph with the assigned values held as shards.

        Raises:
            PlanError: the assignment is of another graph, or none that can be computed.
        """
        assignment = self.assignment
        other = graph is not assignment.graph
        if why := "an assignment for another graph" if other else assignment.misfit():
            raise PlanError.misfit(why, f"rows shared over {assignment.group}")
        if not assignment.shards:
            return PassResult(graph, (), changed=False)
        remarks = list[Remark]()
        for node, form in assignment.forms.items():
            what = form.communicates
            if what is not None and what.kind is Kind.ALL_REDUCE:
                became = KEPT if AUTHORED in node.meta else SCATTERED
                became = SENT if what.operand in assignment.dispatched else became
                layer = access.layer_path(what.operand)
                remarks.append(Remark(RemarkKind.PASSED, f"%{node.name}", became, layer))
        return PassResult(_Writer(assignment).written(), tuple(remarks), changed=True)


class _Writer:
    """Writes the target graph: of every value what is read, all rows or a shard or both."""

    def __init__(self, assignment: RowAssignment) -> None:
        self.graph, self.shares = assignment.graph, assignment.forms
        self.groups, self.sent = assignment.groups, assignment.dispatched
        self.sharing = RowSharing(assignment.group, self.groups.axis_size)
        self.copy = GraphCopy()
        self.whole: dict[fx.Node, fx.Node] = {}
        self.own: dict[fx.Node, fx.Node] = {}

    def written(self) -> SpmdGraph:
        """The target."""
        for node in self.graph.graph.nodes:
            if node in self.shares:
                self._share(node, self.shares[node])
            elif any(user in self.shares for user in node.users) and node.target in OPS:
                continue
            elif reads_share(self.graph, node, self.groups):
                self.own[node] = self.whole[node] = self._own(access.operands(node)[0])
            elif node.target is SIZE_READ and (sized := self._read_size(node)) is not None:
                self.whole[node] = sized
            else:
                self.whole[node] = self.copy.add(node, self._whole)
        target = self.graph.with_graph(self.copy.target, self.copy.origins)
        sums = {n: form.communicates for n, form in self.shares.items()}
        sent = {self.own[n] for n, sum in sums.items() if sum and sum.operand in self.sent}
        return replace(target, dispatched=target.dispatched | sent)

    def _read_size(self, node: fx.Node) -> fx.Node | None:
        """A size of a value that is computed as shares, without gathering it."""
        (x,) = node.all_input_nodes
        if x not in self.shares or x in self.whole:
            return None
        (rows, dim), read = rows_and_dim(x), int(access.arguments(node)["dim"])
        if read % len(access.shape(x)) != dim:
            size = self.copy.target.call_function(SIZE_READ, (self.own[x], read))
            size.meta = dict(node.meta)
            return size
        return self.sharing.count(rows)

    def _share(self, node: fx.Node, form: RowForm) -> None:
        """Writes the share of a value."""
        collective = form.communicates
        if collective is None:
            self.own[node] = self._computed(node, form)
        elif collective.kind is Kind.ALL_GATHER:
            self.own[node] = self._whole(collective.operand)
        else:
            addends = self._whole(collective.operand)
            self.own[node] = self.sharing.scatter(addends, *rows_and_dim(node), collective.op)

    def _computed(self, node: fx.Node, form: RowForm) -> fx.Node:
        result = self.copy.target.node_copy(
            node, lambda x: self._own(x) if x in form.carrying else self._whole(x)
        )
        if access.is_tensor(node):
            state_sizes(result, access.shape(node), rows_and_dim(node)[1])
        result.meta = dict(node.meta, val=share_of(access.value(node), self.groups.axis_size))
        return result

    def _own(self, node: fx.Node) -> fx.Node:
        """The share of a value, cut out of the whole where it is not computed as one."""
        if node not in self.own:
            self.own[node] = self.sharing.cut(self.whole[node], *rows_and_dim(node))
        return self.own[node]

    def _whole(self, node: fx.Node) -> fx.Node:
        """The whole of a value, gathered where it is computed as shares."""
        if node not in self.whole:
            gathered = self.sharing.gather(self.own[node], *rows_and_dim(node))
            gathered.meta = dict(node.meta)
            self.whole[node] = gathered
        return self.whole[node]
