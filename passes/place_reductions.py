"""Place the reductions of one kind over the same ranks where an assignment says.

Before    %2: f32[4, 8] {tp: R} = comm.all_reduce(%0) {axis = tp, op = sum}
          %3: f32[4, 8] {tp: R} = comm.all_reduce(%1) {axis = tp, op = sum}
          %4: f32[4, 8] {tp: R} = aten.add.Tensor(%2, %3)
After     %2: f32[4, 8] {tp: P} = aten.add.Tensor(%0, %1)
          %3: f32[4, 8] {tp: R} = comm.all_reduce(%2) {axis = tp, op = sum}

Law       f linear in partial values, other operands replicated: f(sum_r u_r) = sum_r f(u_r);
          likewise max, min and product with ops that select elements, and reduce_scatters with
          linear ops that treat rows alike: f(RS(u)) = RS(f(u)).
          Orthogonal groups: sum_r sum_s u_rs = sum_(r,s) u_rs, one all_reduce over both.
Exact     over the reals; in floating point the order of additions changes.
Requires  an assignment for this graph in which every addend is Partial, and so is every operand of
          a Partial value.
Ensures   every value that is not assigned is computed from the same reduced values as before.
Saves     what the assignment was chosen for: fewer all_reduces, or fewer bytes in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from compiler.analysis.partial_forms import PartialAssignment
from compiler.analysis.reduction_remarks import reduction_remarks
from compiler.analysis.reductions import joint_groups, reduction_of
from compiler.errors import PlanError
from compiler.ir import access
from compiler.ir.collectives import insert_all_reduce, insert_reduce_scatter
from compiler.ir.graph import SpmdGraph
from compiler.ir.graph_copy import GraphCopy
from compiler.ir.remark import PassResult
from compiler.ir.scale_rows import grown

Forms = dict[fx.Node, fx.Node]


@dataclass(frozen=True)
class PlaceReductions:
    """Applies one assignment.

    Attributes:
        assignment: of Partial or Replicate to values of the graph that the pass is applied to.
    """

    name: ClassVar[str] = "place-reductions"
    assignment: PartialAssignment

    def apply(self, graph: SpmdGraph) -> PassResult:
        """Return the graph with its reductions where the assignment puts them.

        Raises:
            PlanError: the assignment is of another graph, or none that can be computed.
        """
        assignment, reduction = self.assignment, self.assignment.facts.reduction
        other = graph is not assignment.facts.graph
        if why := "an assignment for another graph" if other else assignment.misfit():
            where = f"{reduction.collective} {reduction.kind} over {reduction.group}"
            raise PlanError.misfit(why, where)
        target = graph if assignment.keeps else _Rewriter(assignment).run()
        return PassResult(target, reduction_remarks(assignment), changed=target is not graph)


class _Rewriter:
    """Computes the graph again, partial values in the forms that are read."""

    def __init__(self, assignment: PartialAssignment) -> None:
        self.assignment, self.values = assignment, assignment.values
        self.facts, self.reduction = assignment.facts, assignment.facts.reduction
        self.copy, self.mesh = GraphCopy(), self.facts.graph.mesh
        self.plain: Forms = {}
        self.partial: Forms = {}
        self.reduced: Forms = {}

    def run(self) -> SpmdGraph:
        """Return the graph."""
        graph, (read_partial, read_reduced) = self.facts.graph, self.assignment.forms_read()
        for node in graph.graph.nodes:
            if node not in self.values:
                if not self.assignment.starts(node):
                    self._other(node)
                continue
            if node in read_partial:
                self.partial[node] = self._form(node, self.partial)
            if node in read_reduced and node in self.assignment.partial:
                self.reduced[node] = self._reduced(node)
            elif node in read_reduced:
                self.reduced[node] = self._form(node, self.reduced)
            form = self.partial if self.values[node].addend else self.reduced
            if node in form:
                self.plain[node] = form[node]
        return graph.with_graph(self.copy.target, self.copy.origins, self.mesh)

    def _form(self, node: fx.Node, forms: Forms) -> fx.Node:
        """The Partial or the Replicate form of a value, from those of its operands."""
        value = self.values[node]
        if value.reduces:
            return forms[value.operands[0]]

        def operand(x: fx.Node) -> fx.Node:
            return forms[x] if x in value.operands else self.plain[x]

        if self.reduction.scatters and forms is self.partial and not value.addend:
            return grown(self.copy.target, node, operand)
        return self.copy.add_recomputed(node, operand)

    def _reduced(self, node: fx.Node) -> fx.Node:
        target, operand = self.copy.target, self.partial[node]
        kind, group = self.reduction.kind, self.reduction.group
        if self.reduction.scatters:
            size, like = self.reduction.groups.axis_size, access.tensor(node)
            result = insert_reduce_scatter(target, operand, kind, group, size, like)
        else:
            result = insert_all_reduce(target, operand, kind, group)
            if self.values[node].reduces:
                result._rename(node.name)  # what later passes do to it, they say by this name
        result.meta = dict(node.meta)
        return result

    def _other(self, node: fx.Node) -> None:
        """A value that is not assigned: what it reads is as before, or has the same shape."""
        joint = node in self.assignment.joint

        def operand(x: fx.Node) -> fx.Node:
            return self.partial[x] if joint or x not in self.plain else self.plain[x]

        self.plain[node] = self.copy.add(node, operand)
        if joint:
            access.set_argument(self.plain[node], "group_name", self._joint_name(node))

    def _joint_name(self, node: fx.Node) -> str:
        """The name of both groups together, which the mesh knows from now on."""
        groups, second = joint_groups(node, self.facts), reduction_of(self.facts.graph, node)
        assert groups is not None, f"%{node.name} reduces over groups that are not orthogonal"
        assert second is not None, f"%{node.name} does not reduce"
        self.mesh, name = self.mesh.including(groups, f"{self.reduction.group}*{second.group}")
        return name
