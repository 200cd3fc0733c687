"""Place the reductions of one stage of a plan.

Before    %2: f32[4, 8] {tp: R} = comm.all_reduce(%0) {axis = tp, op = sum}
          %3: f32[4, 8] {tp: R} = comm.all_reduce(%1) {axis = tp, op = sum}
          %4: f32[4, 8] {tp: R} = aten.add.Tensor(%2, %3)
After     %2: f32[4, 8] {tp: P} = aten.add.Tensor(%0, %1)
          %3: f32[4, 8] {tp: R} = comm.all_reduce(%2) {axis = tp, op = sum}

Law       f linear in carriers, other operands replicated: f(sum_r u_r) = sum_r f(u_r).
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

from compiler.analysis.carriers import (
    Carrier,
    Facts,
    addend,
    carriers,
    facts,
    reductions,
    refusal,
)
from compiler.errors import PlanError
from compiler.ir import access
from compiler.ir.collectives import OPS, insert_all_reduce
from compiler.ir.graph import SpmdGraph
from compiler.ir.remark import PassResult, Remark, RemarkKind
from compiler.ir.text import numbers
from compiler.plan.comm_plan import Stage

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
        remarks = tuple(_remarks(graph, known, found, unreduced))
        kept = {n for n in found if found[n].reduces}
        if unreduced == {n for n in found if found[n].addend or n in kept}:
            return PassResult(graph, remarks, changed=False)
        return PassResult(_rewritten(graph, found, unreduced, self.stage), remarks, changed=True)

    def _known(self, graph: SpmdGraph) -> Facts:
        for reduction in reductions(graph):
            if (reduction.group, reduction.kind) == (self.stage.group, self.stage.kind):
                return facts(graph, reduction)
        raise PlanError(
            "the plan does not fit the graph",
            found=f"no all_reduce {self.stage.kind} over {self.stage.group}",
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


def _rewritten(
    graph: SpmdGraph, found: Mapping[fx.Node, Carrier], unreduced: set[fx.Node], stage: Stage
) -> SpmdGraph:
    """The graph computed again, carriers in the forms that are read."""
    needs_unreduced, needs_reduced = _needs(graph.graph, found, unreduced)
    target = fx.Graph()
    plain: Forms = {}
    partial: Forms = {}
    whole: Forms = {}

    origins: Forms = {}

    def copy(node: fx.Node, forms: Forms) -> fx.Node:
        operands = found[node].operands if node in found else ()
        made = target.node_copy(node, lambda x: forms[x] if x in operands else plain[x])
        origins[made] = node
        return made

    for node in graph.graph.nodes:
        if node not in found:
            starts = any(w in found and found[w].reduces for w in node.users)
            if not starts:
                plain[node] = copy(node, plain)
            continue
        carrier = found[node]
        if node in needs_unreduced:
            (start,) = carrier.operands if carrier.reduces else (None,)
            partial[node] = partial[start] if start is not None else copy(node, partial)
        if node in needs_reduced and node in unreduced:
            whole[node] = insert_all_reduce(target, partial[node], stage.kind, stage.group)
            whole[node].meta = dict(node.meta)
        elif node in needs_reduced:
            (start,) = carrier.operands if carrier.reduces else (None,)
            whole[node] = whole[start] if start is not None else copy(node, whole)
        form = partial if carrier.addend else whole
        if node in form:
            plain[node] = form[node]
    return graph.with_graph(target, origins)


def _needs(
    graph: fx.Graph, found: Mapping[fx.Node, Carrier], unreduced: set[fx.Node]
) -> tuple[set[fx.Node], set[fx.Node]]:
    """Carriers whose unreduced, and whose reduced, form is read; inputs stay in any case."""
    needs_unreduced = {node for node in found if node.op == "placeholder"}
    needs_reduced: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node in found:
            if node in unreduced and node in needs_reduced:
                needs_unreduced.add(node)
            held = found[node].operands
            needs_unreduced.update(held if node in needs_unreduced else ())
            needs_reduced.update(held if node in needs_reduced - unreduced else ())
            if node not in needs_unreduced | needs_reduced or found[node].reduces:
                continue
        elif any(w in found and found[w].reduces for w in node.users):
            continue
        own = found[node].operands if node in found else ()
        for x in node.all_input_nodes:
            if x in found and x not in own:
                (needs_unreduced if found[x].addend else needs_reduced).add(x)
    return needs_unreduced, needs_reduced


def _remarks(
    graph: SpmdGraph, known: Facts, found: Mapping[fx.Node, Carrier], unreduced: set[fx.Node]
) -> list[Remark]:
    """One remark per all_reduce of the source: merged, moved, or kept and why."""
    remarks = []
    for node, carrier in found.items():
        if not carrier.reduces:
            continue
        layer = access.layer_path(addend(node))
        movers = [u for u in node.users if u in found and u in unreduced]
        if node not in unreduced:
            what = f"all_reduce hoisted above {addend(node).target}"
            remarks.append(Remark(RemarkKind.PASSED, f"%{node.name}", what, layer))
        elif movers and all(u in movers for u in node.users):
            what = f"all_reduce moved below {movers[0].target}"
            remarks.append(Remark(RemarkKind.PASSED, f"%{node.name}", what, layer))
        else:
            why = _kept(node, known, found)
            remarks.append(Remark(RemarkKind.MISSED, f"%{node.name}", why, layer))
    return remarks


def _kept(node: fx.Node, known: Facts, found: Mapping[fx.Node, Carrier]) -> str:
    """Why the all_reduce ``node`` stays where the author put it."""
    for user in node.users:
        if user.op == "output":
            return "all_reduce kept: the graph returns its result"
        if user not in found:
            if user.target in OPS:
                return f"all_reduce kept: {OPS[user.target]} %{user.name} sends its result"
            partial = [x for x in access.operands(user) if x in found and not found[x].addend]
            why = refusal(user, partial, known) or "read by no linear op"
            return f"all_reduce kept: {why}"
    return "all_reduce kept: moving it saves nothing"
