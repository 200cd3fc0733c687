"""Place the reductions of one stage of a plan.

Before    %2: f32[4, 8] {tp: R} = comm.all_reduce(%0) {axis = tp, op = sum}
          %3: f32[4, 8] {tp: R} = comm.all_reduce(%1) {axis = tp, op = sum}
          %4: f32[4, 8] {tp: R} = aten.add.Tensor(%2, %3)
After     %2: f32[4, 8] {tp: P} = aten.add.Tensor(%0, %1)
          %3: f32[4, 8] {tp: R} = comm.all_reduce(%2) {axis = tp, op = sum}

Law       f linear in carriers, other operands replicated: f(sum_r u_r) = sum_r f(u_r);
          likewise max, min and product with ops that select elements, and reduce_scatters with
          linear ops that treat rows alike: f(RS(u)) = RS(f(u)).
          Orthogonal groups: sum_r sum_s u_rs = sum_(r,s) u_rs, one all_reduce over both.
Exact     over the reals; in floating point the order of additions changes.
Requires  the plan was made for this graph: every addend is unreduced, and so is every operand of
          an unreduced carrier.
Ensures   every value that is not a carrier is computed from the same reduced values as before.
Saves     what the plan counted: fewer all_reduces, or fewer bytes in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from compiler.analysis.partial_forms import Labels
from compiler.analysis.partial_values import carriers
from compiler.analysis.reduction_remarks import remarks
from compiler.analysis.reductions import Facts, facts, joint_groups, reduction_of, reductions
from compiler.errors import PlanError
from compiler.ir import access
from compiler.ir.collectives import group_argument, insert_all_reduce, insert_reduce_scatter
from compiler.ir.comm_plan import Stage
from compiler.ir.graph import SpmdGraph
from compiler.ir.graph_copy import GraphCopy
from compiler.ir.remark import PassResult
from compiler.ir.scale_rows import grown
from compiler.ir.text import numbers

Forms = dict[fx.Node, fx.Node]


@dataclass(frozen=True)
class PlaceReductions:
    """Applies one stage.

    Attributes:
        stage: made by ``compiler.plan.reduction_cut`` for the graph it is applied to.
    """

    name: ClassVar[str] = "place-reductions"
    stage: Stage

    def apply(self, graph: SpmdGraph) -> PassResult:
        """The graph with its all_reduces where the stage puts them.

        Raises:
            PlanError: the stage was not made for this graph.
        """
        known = self._known(graph)
        found, number = carriers(graph, known), numbers(graph.graph)
        wanted = set(self.stage.unreduced)
        labels = Labels(known, found, frozenset(n for n in found if number[n] in wanted))
        missing = wanted - {number[n] for n in labels.unreduced}
        why = f"values {sorted(missing)} are not sums over ranks" if missing else labels.misfit()
        if why:
            raise PlanError(
                "the plan does not fit the graph",
                where=f"stage {self.stage.kind} over {self.stage.group}",
                found=why,
                remedy="plan again for this graph",
            )
        author_unreduced = {n for n in found if found[n].addend or found[n].reduces}
        if labels.unreduced == author_unreduced and not labels.joint:
            return PassResult(graph, remarks(labels), changed=False)
        return PassResult(_Rewriter(labels).run(), remarks(labels), changed=True)

    def _known(self, graph: SpmdGraph) -> Facts:
        stage = self.stage
        for found in reductions(graph):
            if (found.group, found.kind, found.scatters) == (
                stage.group, stage.kind, stage.scatters
            ):  # fmt: skip
                return facts(graph, found, widen=stage.widen, join=stage.join)
        raise PlanError(
            "the plan does not fit the graph",
            found=f"no {stage.collective} {stage.kind} over {stage.group}",
            remedy="plan again for this graph",
        )


class _Rewriter:
    """Computes the graph again, carriers in the forms that are read."""

    def __init__(self, labels: Labels) -> None:
        self.labels, self.known, self.found = labels, labels.known, labels.found
        self.copy, self.mesh = GraphCopy(), self.known.graph.mesh
        self.target, self.plain = self.copy.target, dict[fx.Node, fx.Node]()
        self.partial: Forms = {}
        self.whole: Forms = {}

    def run(self) -> SpmdGraph:
        """The graph."""
        graph, read = self.known.graph, self.labels.forms_read()
        for node in graph.graph.nodes:
            if node not in self.found:
                if not self.labels.starts(node):
                    self._other(node)
                continue
            if node in read.unreduced:
                self.partial[node] = self._form(node, self.partial)
            if node in read.reduced and node in self.labels.unreduced:
                self.whole[node] = self._reduced(node)
            elif node in read.reduced:
                self.whole[node] = self._form(node, self.whole)
            form = self.partial if self.found[node].addend else self.whole
            if node in form:
                self.plain[node] = form[node]
        return graph.with_graph(self.target, self.copy.origins, self.mesh)

    def _form(self, node: fx.Node, forms: Forms) -> fx.Node:
        """The unreduced or the reduced form of a carrier, from those of its operands."""
        carrier = self.found[node]
        if carrier.reduces:
            return forms[carrier.operands[0]]

        def operand(x: fx.Node) -> fx.Node:
            return forms[x] if x in carrier.operands else self.plain[x]

        if self.known.reduction.scatters and forms is self.partial and not carrier.addend:
            return grown(self.target, node, operand)
        return self.copy.add_recomputed(node, operand)

    def _reduced(self, node: fx.Node) -> fx.Node:
        reduction, operand = self.known.reduction, self.partial[node]
        kind, group = reduction.kind, reduction.group
        if reduction.scatters:
            size = reduction.groups.axis_size
            gives = access.tensor(node)
            made = insert_reduce_scatter(self.target, operand, kind, group, size, gives)
            made.meta = dict(node.meta)
            return made
        made = insert_all_reduce(self.target, operand, kind, group)
        made.meta = dict(node.meta)
        if self.found[node].reduces:
            made._rename(node.name)  # what later passes do to it, they say by this name
        return made

    def _other(self, node: fx.Node) -> None:
        """A value that is no carrier: what it reads is as before, or has the same shape."""

        def operand(x: fx.Node) -> fx.Node:
            joint = node in self.labels.joint
            return self.partial[x] if joint or x not in self.plain else self.plain[x]

        made = self.plain[node] = self.copy.add(node, operand)
        if node in self.labels.joint:
            argument = group_argument(made)
            assert argument is not None, f"%{node.name} has no group"
            access.set_argument(made, argument, self._joint_name(node))

    def _joint_name(self, node: fx.Node) -> str:
        """The name of both groups together, which the mesh knows from now on."""
        groups = joint_groups(node, self.known)
        second = reduction_of(self.known.graph, node)
        assert groups is not None, f"%{node.name} reduces over groups that are not orthogonal"
        assert second is not None, f"%{node.name} does not reduce"
        name = f"{self.known.reduction.group}*{second.group}"
        self.mesh, name = self.mesh.including(groups, name)
        return name
