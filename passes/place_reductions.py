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

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from compiler.analysis.carriers import Carrier, addend, carriers
from compiler.analysis.reasons import kept
from compiler.analysis.reductions import (
    Facts,
    facts,
    joint_groups,
    reads_shape,
    reduction_of,
    reductions,
)
from compiler.analysis.rows import only_own_rows_read
from compiler.errors import PlanError
from compiler.ir import access
from compiler.ir.collectives import (
    group_position,
    insert_all_reduce,
    insert_reduce_scatter,
)
from compiler.ir.graph import SpmdGraph
from compiler.ir.grown import evaluate, grown
from compiler.ir.remark import PassResult, Remark, RemarkKind
from compiler.ir.rules.meaning import size_key
from compiler.ir.text import numbers
from compiler.plan.comm_plan import Stage
from compiler.plan.place_reductions import demanded

Forms = dict[fx.Node, fx.Node]


@dataclass(frozen=True)
class PlaceReductions:
    """Applies one stage.

    Attributes:
        stage: made by ``compiler.plan.place_reductions`` for the graph it is applied to.
    """

    name: ClassVar[str] = "place-reductions"
    stage: Stage

    def apply(self, graph: SpmdGraph) -> PassResult:
        """The graph with its all_reduces where the stage puts them.

        Raises:
            PlanError: the stage was not made for this graph.
        """
        known = self._known(graph)
        found = carriers(graph, known)
        number = numbers(graph.graph)
        wanted = set(self.stage.unreduced)
        unreduced = {node for node in found if number[node] in wanted}
        if why := _misfit(found, unreduced, {number[n] for n in unreduced}, wanted):
            raise PlanError(
                "the plan does not fit the graph",
                where=f"stage {self.stage.kind} over {self.stage.group}",
                found=why,
                remedy="plan again for this graph",
            )
        remarks = tuple(_remarks(known, found, unreduced))
        rewriter = _Rewriter(known, found, unreduced)
        author_unreduced = {n for n in found if found[n].addend or found[n].reduces}
        if unreduced == author_unreduced and not rewriter.joint:
            return PassResult(graph, remarks, changed=False)
        return PassResult(rewriter.run(), remarks, changed=True)

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


def _misfit(
    found: Mapping[fx.Node, Carrier], unreduced: set[fx.Node], matched: set[int], wanted: set[int]
) -> str:
    """Why these labels are no placement, empty if they are one."""
    if missing := wanted - matched:
        return f"values {sorted(missing)} are not sums over ranks"
    for node, carrier in found.items():
        if node in unreduced and any(x not in unreduced for x in carrier.operands):
            return f"%{node.name} is to run unreduced on a reduced operand"
        if node not in unreduced and (carrier.pinned or not carrier.operands):
            return f"%{node.name} exists unreduced only"
    return ""


class _Rewriter:
    """Computes the graph again, carriers in the forms that are read."""

    def __init__(
        self,
        known: Facts,
        found: Mapping[fx.Node, Carrier],
        unreduced: set[fx.Node],
    ) -> None:
        self.known, self.found, self.unreduced = known, found, unreduced
        self.joint = {
            user
            for node, carrier in found.items()
            for user in carrier.joint
            if node in unreduced and not demanded(node, found, unreduced, known)
        }
        self.target, self.mesh = fx.Graph(), known.graph.mesh
        self.origins: Forms = {}
        self.plain: Forms = {}
        self.partial: Forms = {}
        self.whole: Forms = {}

    def run(self) -> SpmdGraph:
        """The graph."""
        graph = self.known.graph
        needs_unreduced, needs_reduced = self._needs()
        for node in graph.graph.nodes:
            if node not in self.found:
                if not self._starts(node):
                    self._other(node)
                continue
            if node in needs_unreduced:
                self.partial[node] = self._form(node, self.partial)
            if node in needs_reduced and node in self.unreduced:
                self.whole[node] = self._reduced(node)
            elif node in needs_reduced:
                self.whole[node] = self._form(node, self.whole)
            form = self.partial if self.found[node].addend else self.whole
            if node in form:
                self.plain[node] = form[node]
        return graph.with_graph(self.target, self.origins, self.mesh)

    def _starts(self, node: fx.Node) -> bool:
        """Whether ``node`` starts a reduction that is placed anew."""
        return any(w in self.found and self.found[w].reduces for w in node.users)

    def _form(self, node: fx.Node, forms: Forms) -> fx.Node:
        """The unreduced or the reduced form of a carrier, from those of its operands."""
        carrier = self.found[node]
        if carrier.reduces:
            return forms[carrier.operands[0]]

        def operand(x: fx.Node) -> fx.Node:
            return forms[x] if x in carrier.operands else self.plain[x]

        if self.known.reduction.scatters and forms is self.partial and not carrier.addend:
            return grown(self.target, node, operand)
        made = self.target.node_copy(node, operand)
        if all(_same_strides(x, operand(x)) for x in access.operands(node)):
            self.origins[made] = node
        else:
            evaluate(made)
        return made

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
        return made

    def _other(self, node: fx.Node) -> None:
        """A value that is no carrier: what it reads is as before, or has the same shape."""

        def operand(x: fx.Node) -> fx.Node:
            joint = node in self.joint
            return self.partial[x] if joint or x not in self.plain else self.plain[x]

        made = self.plain[node] = self.target.node_copy(node, operand)
        self.origins[made] = node
        if node in self.joint:
            name = self._joint_name(node)
            position = group_position(made)
            assert position is not None, f"%{node.name} has no group"
            made.update_arg(position, name)

    def _joint_name(self, node: fx.Node) -> str:
        """The name of both groups together, which the mesh knows from now on."""
        groups = joint_groups(node, self.known)
        second = reduction_of(self.known.graph, node)
        assert groups is not None, f"%{node.name} reduces over groups that are not orthogonal"
        assert second is not None, f"%{node.name} does not reduce"
        name = f"{self.known.reduction.group}*{second.group}"
        self.mesh, name = self.mesh.including(groups, name)
        return name

    def _needs(self) -> tuple[set[fx.Node], set[fx.Node]]:
        """Carriers whose unreduced, and whose reduced, form is read; inputs stay in any case."""
        found, unreduced = self.found, self.unreduced
        needs_unreduced = {node for node in found if node.op == "placeholder"}
        needs_reduced: set[fx.Node] = set()
        for node in reversed(self.known.graph.graph.nodes):
            if node in found:
                if node in unreduced and node in needs_reduced:
                    needs_unreduced.add(node)
                held = found[node].operands
                needs_unreduced.update(held if node in needs_unreduced else ())
                needs_reduced.update(held if node in needs_reduced - unreduced else ())
                if node not in needs_unreduced | needs_reduced or found[node].reduces:
                    continue
            elif self._starts(node):
                continue
            own = found[node].operands if node in found else ()
            for x in node.all_input_nodes:
                if x in found and x not in own:
                    (needs_unreduced if self._reads_unreduced(node, x) else needs_reduced).add(x)
        return needs_unreduced, needs_reduced

    def _reads_unreduced(self, node: fx.Node, x: fx.Node) -> bool:
        """Whether ``node``, which is not linear in the carrier ``x``, gets its unreduced form."""
        if self.found[x].addend or node in self.joint:
            return True
        shape_alone = reads_shape(node) and not self.known.reduction.scatters
        return shape_alone and x in self.unreduced


def _same_strides(left: fx.Node, right: fx.Node) -> bool:
    """Whether both are laid out alike; reducing may have changed that."""
    if left is right or not access.is_tensor(left):
        return True
    before, after = (tuple(map(size_key, access.tensor(x).stride())) for x in (left, right))
    return before == after


def _remarks(
    known: Facts, found: Mapping[fx.Node, Carrier], unreduced: set[fx.Node]
) -> list[Remark]:
    """One remark per reduction of the source: merged, moved, or kept and why.

    None where only own rows are read: whether a reduce_scatter will do is not for this pass.
    """
    remarks, kind = [], known.reduction.collective
    scattered = only_own_rows_read(known.graph, known.reduction.groups)
    for node, carrier in found.items():
        if not carrier.reduces:
            continue
        layer = access.layer_path(addend(node))
        movers = [u for u in node.users if u in found and u in unreduced]
        movers += carrier.joint if not demanded(node, found, unreduced, known) else ()
        if node not in unreduced:
            what = f"{kind} hoisted above {addend(node).target}"
            remarks.append(Remark(RemarkKind.PASSED, f"%{node.name}", what, layer))
        elif movers and not demanded(node, found, unreduced, known):
            how = "reduced with" if movers[0] in carrier.joint else "moved below"
            what = f"{kind} {how} {movers[0].target}"
            remarks.append(Remark(RemarkKind.PASSED, f"%{node.name}", what, layer))
        elif node not in scattered:
            why = f"{kind} kept: {kept(node, known, found)}"
            remarks.append(Remark(RemarkKind.MISSED, f"%{node.name}", why, layer))
    return remarks
