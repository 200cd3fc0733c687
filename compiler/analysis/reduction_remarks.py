"""What became of the author's reductions, and why one stays where it was: the text of remarks."""

from __future__ import annotations

from torch import fx

from compiler.analysis.linearity import why_not_linear, widens
from compiler.analysis.partial_forms import PartialAssignment
from compiler.analysis.partial_values import PartialValues, addend, partial_values
from compiler.analysis.reductions import (
    ReductionFacts,
    reads_shape,
    reduction_facts,
    reduction_of,
)
from compiler.analysis.row_shards import only_own_rows_read
from compiler.ir import access
from compiler.ir.collectives import OPS, collective
from compiler.ir.mesh import product
from compiler.ir.remark import Remark, RemarkKind

WIDEN = "--widen (widen=True) lets reductions move below conversions to a wider type"


def reduction_remarks(assignment: PartialAssignment) -> tuple[Remark, ...]:
    """Return one remark per reduction of the source: merged, moved, or kept and why.

    None where only own rows are read: whether a reduce_scatter will do is facts when rows are
    shared.
    """
    facts, values, remarks = assignment.facts, assignment.values, list[Remark]()
    scattered = only_own_rows_read(facts.graph, facts.reduction.groups)
    for node, value in values.items():
        if not value.reduces:
            continue
        what, layer = f"{facts.reduction.collective} ", access.layer_path(addend(node))
        if moved := _moved(node, assignment):
            remarks.append(Remark(RemarkKind.PASSED, f"%{node.name}", what + moved, layer))
        elif node not in scattered:
            why, remedy = _kept(node, facts, values)
            reason = f"{what}kept: {why}"
            remarks.append(Remark(RemarkKind.MISSED, f"%{node.name}", reason, layer, remedy))
    return tuple(remarks)


def _moved(node: fx.Node, assignment: PartialAssignment) -> str:
    """Where the reduction with result ``node`` went, empty if it stays."""
    if node not in assignment.partial:
        if addend(node) in assignment.partial:
            return f"done once for all that need %{addend(node).name} reduced"
        return f"hoisted above {addend(node).target}"
    joint = assignment.values[node].joint
    movers = [*(user for user in node.users if user in assignment.partial), *joint]
    if not movers or assignment.demanded(node):
        return ""
    how = "reduced with" if movers[0] in joint else "moved below"
    return f"{how} {movers[0].target}"


def _kept(node: fx.Node, facts: ReductionFacts, values: PartialValues) -> tuple[str, str]:
    """Why the reduction with result ``node`` was not moved, and what would change that.

    The first of its readers that needs it reduced; that nothing is saved, if all could do without.
    """
    for user in node.users:
        if user.op == "output":
            return "the graph returns its result", ""
        if user in values or user in values[node].joint:
            continue
        if user.target in OPS:
            return _sent(user, facts), ""
        if reads_shape(user):
            continue
        partial = [x for x in access.operands(user) if x in values and not values[x].addend]
        why = why_not_linear(user, partial, facts) or "read by no linear op"
        remedy = WIDEN if _widens_only(user, facts) else ""
        return why + _widened(node, user, facts), remedy
    here = access.payload_bytes(node)
    for user in node.users:
        if user in values and access.is_tensor(user) and access.payload_bytes(user) > here:
            there = access.payload_bytes(user)
            return f"moving it below {user.target} costs {there} bytes instead of {here}", ""
    return "moving it saves nothing", ""


def _sent(user: fx.Node, facts: ReductionFacts) -> str:
    """Why the collective ``user`` does not take the Partial form."""
    other, mine = reduction_of(facts.graph, user), facts.reduction
    if other is not None and not other.scatters and not mine.scatters:
        if other.kind != mine.kind:
            return f"%{user.name} is a reduction of another kind, {other.kind}"
        if product(mine.groups, other.groups) is None:
            return f"%{user.name} reduces over {other.group}, not orthogonal to {mine.group}"
        return f"no process group for {mine.group} and {other.group} together can be made"
    what = collective(user)
    assert what is not None, f"%{user.name} is not a collective"
    return f"{what.kind} %{user.name} sends its result"


def _widens_only(user: fx.Node, facts: ReductionFacts) -> bool:
    """Whether ``user`` is in the way as a conversion to a wider type alone."""
    rule = facts.graph.meanings.get(user)
    casts = rule is not None and rule.casts and widens(user)
    return bool(casts) and not facts.allow_dtype_widening


def _widened(node: fx.Node, user: fx.Node, facts: ReductionFacts) -> str:
    """What crossing the widening cast ``user`` would lead to."""
    if not _widens_only(user, facts):
        return ""
    wide = partial_values(
        reduction_facts(facts.graph, facts.reduction, True, facts.allow_new_groups)
    )
    seen, queue = {node}, [user]
    while queue:
        reader = queue.pop(0)
        if reader not in wide or reader in seen:
            continue
        seen.add(reader)
        if others := [x for x in wide[reader].operands if x not in seen]:
            return f"; with it, %{node.name} and %{others[0].name} would meet in %{reader.name}"
        queue += reader.users
    return ""
