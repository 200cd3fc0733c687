"""Hold values as shares of rows, one per rank, where a plan says so.

Before    %2: f32[8, 4] {tp: R} = comm.all_reduce(%0) {axis = tp, op = sum}
          %3: f32[8, 4] {tp: R} = aten.silu(%2)
After     %2: f32[4, 4] {tp: S(0)} = comm.reduce_scatter(%0) {axis = tp, op = sum}
          %3: f32[4, 4] {tp: S(0)} = aten.silu(%2)
          %4: f32[8, 4] {tp: R} = comm.all_gather(%3) {axis = tp}

Law       f row by row: f(x)[rows] = f(x[rows]);  reduce_scatter = own rows of all_reduce;
          all_gather of own rows = all rows.
Exact     bit by bit but for the order of additions in a reduce_scatter.
Requires  the plan was made for this graph. Rows that ranks cannot share evenly are padded before
          they are scattered, and cut off after they are gathered.
Ensures   every value that is not held as shares is computed from the same whole values as before.
Saves     what the plan counted: work on rows, and all_gathers where nobody reads all rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import fx

from compiler.analysis.row_shards import (
    SIZE_READ,
    RowForm,
    reads_share,
    row_forms,
    rows_and_dim,
    share_of,
)
from compiler.errors import PlanError
from compiler.ir import access
from compiler.ir.collectives import OPS, Kind
from compiler.ir.comm_plan import RowStage
from compiler.ir.graph import SpmdGraph
from compiler.ir.redistribute import RowSharing
from compiler.ir.remark import PassResult, Remark, RemarkKind
from compiler.ir.row_ops import AUTHORED
from compiler.ir.scale_rows import SIZE_ARGUMENTS
from compiler.ir.text import numbers

SCATTERED = "all_reduce became a reduce_scatter"
KEPT = "reduce_scatter kept: rows stay shared as the author shares them"
SENT = "rows go to the ranks that own their experts and back, by all_to_all: no all_reduce"


@dataclass(frozen=True)
class ShardRows:
    """Applies one stage.

    Attributes:
        stage: made by ``compiler.plan.row_cut`` for the graph it is applied to.
    """

    name: ClassVar[str] = "shard-rows"
    stage: RowStage

    def apply(self, graph: SpmdGraph) -> PassResult:
        """The graph with the stage's values held as shares.

        Raises:
            PlanError: the stage was not made for this graph.
        """
        if not self.stage.shares:
            return PassResult(graph, (), changed=False)
        groups = graph.mesh.group(self.stage.group)
        forms, number = row_forms(graph, groups), numbers(graph.graph)
        shares = {n: form for n, form in forms.items() if number[n] in set(self.stage.shares)}
        if len(shares) != len(self.stage.shares):
            raise PlanError(
                "the plan does not fit the graph",
                where=f"rows shared over {self.stage.group}",
                found=f"{len(self.stage.shares)} values, of which {len(shares)} can be shared",
                remedy="plan again for this graph",
            )
        sent = {n for n in graph.graph.nodes if number.get(n) in set(self.stage.dispatches)}
        writer = _Writer(graph, self.stage.group, shares, sent)
        target = writer.written()
        remarks = [
            Remark(RemarkKind.PASSED, f"%{node.name}",
                   _became(node, sent=form.communicates.operand in sent),
                   access.layer_path(form.communicates.operand))
            for node, form in shares.items()
            if form.communicates is not None and form.communicates.kind is Kind.ALL_REDUCE
        ]  # fmt: skip
        return PassResult(target, tuple(remarks), changed=True)


def _became(node: fx.Node, *, sent: bool) -> str:
    kept = KEPT if AUTHORED in node.meta else SCATTERED
    return SENT if sent else kept


@dataclass
class _Writer:
    """Writes the target graph.

    Attributes:
        graph: the source.
        group: name of the replica groups that share rows.
        shares: the values held as shares.
        sent: partial sums for which rows are sent to the ranks that need them, at run time.
        whole: value -> its whole form in the target.
        own: value -> its share in the target.
    """

    graph: SpmdGraph
    group: str
    shares: Mapping[fx.Node, RowForm]
    sent: Set[fx.Node] = frozenset()
    target: fx.Graph = field(default_factory=fx.Graph)
    whole: dict[fx.Node, fx.Node] = field(default_factory=dict)
    own: dict[fx.Node, fx.Node] = field(default_factory=dict)

    def written(self) -> SpmdGraph:
        """The target."""
        self.groups = self.graph.mesh.group(self.group)
        self.sharing = RowSharing(self.group, self.groups.axis_size)
        origins: dict[fx.Node, fx.Node] = {}
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
                self.whole[node] = self.target.node_copy(node, self._whole)
                origins[self.whole[node]] = node
        target = self.graph.with_graph(self.target, origins)
        sums = {n: f.communicates for n, f in self.shares.items()}
        sent = {self.own[n] for n, sum in sums.items() if sum and sum.operand in self.sent}
        return replace(target, dispatched=target.dispatched | sent)

    def _read_size(self, node: fx.Node) -> fx.Node | None:
        """A size of a value that is computed as shares, without gathering it."""
        (x,) = node.all_input_nodes
        if x not in self.shares or x in self.whole:
            return None
        (rows, dim), read = rows_and_dim(x), int(access.arguments(node)["dim"])
        if read % len(access.shape(x)) != dim:
            made = self.target.call_function(SIZE_READ, (self.own[x], read))
            made.meta = dict(node.meta)
            return made
        return self.sharing.count(rows)

    def _share(self, node: fx.Node, form: RowForm) -> None:
        """Writes the share of a value."""
        found = form.communicates
        if found is None:
            self.own[node] = self._computed(node, form)
        elif found.kind is Kind.ALL_GATHER:
            self.own[node] = self._whole(found.operand)
        else:
            addends = self._whole(found.operand)
            self.own[node] = self.sharing.scatter(addends, *rows_and_dim(node), found.op)

    def _computed(self, node: fx.Node, form: RowForm) -> fx.Node:
        made = self.target.node_copy(
            node, lambda x: self._own(x) if x in form.carrying else self._whole(x)
        )
        for name in SIZE_ARGUMENTS if access.projection(node) is None else ():
            sizes = access.written_arguments(made).get(name)
            if isinstance(sizes, list | tuple) and sizes:
                stated = list(access.shape(node))  # what another -1 stands for
                known = [stated[d] if size == -1 else size for d, size in enumerate(sizes)]
                known[rows_and_dim(node)[1]] = -1
                access.set_argument(made, name, known)
        made.meta = dict(node.meta, val=share_of(access.value(node), self.groups.axis_size))
        return made

    def _own(self, node: fx.Node) -> fx.Node:
        """The share of a value, cut out of the whole where it is not computed as one."""
        if node not in self.own:
            self.own[node] = self.sharing.cut(self.whole[node], *rows_and_dim(node))
        return self.own[node]

    def _whole(self, node: fx.Node) -> fx.Node:
        """The whole of a value, gathered where it is computed as shares."""
        if node not in self.whole:
            made = self.sharing.gather(self.own[node], *rows_and_dim(node))
            made.meta = dict(node.meta)
            self.whole[node] = made
        return self.whole[node]
