"""What became of the author's reductions, and why one stays where it was: the text of remarks."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from compiler.analysis.linearity import refusal, widens
from compiler.analysis.partial_forms import Labels
from compiler.analysis.partial_values import Carrier, addend, carriers
from compiler.analysis.reductions import Facts, facts, reads_shape, reduction_of
from compiler.analysis.row_shards import only_own_rows_read
from compiler.ir import access
from compiler.ir.collectives import OPS, collective
from compiler.ir.mesh import product
from compiler.ir.remark import Remark, RemarkKind


def remarks(labels: Labels) -> tuple[Remark, ...]:
    """One remark per reduction of the source: merged, moved, or kept and why.

    None where only own rows are read: whether a reduce_scatter will do is known when rows are
    shared.
    """
    known, found, said = labels.known, labels.found, list[Remark]()
    scattered = only_own_rows_read(known.graph, known.reduction.groups)
    for node, carrier in found.items():
        if not carrier.reduces:
            continue
        what, layer = f"{known.reduction.collective} ", access.layer_path(addend(node))
        if moved := _moved(node, labels):
            said.append(Remark(RemarkKind.PASSED, f"%{node.name}", what + moved, layer))
        elif node not in scattered:
            why = f"kept: {_kept(node, known, found)}"
            said.append(Remark(RemarkKind.MISSED, f"%{node.name}", what + why, layer))
    return tuple(said)


def _moved(node: fx.Node, labels: Labels) -> str:
    """Where the reduction with result ``node`` went, empty if it stays."""
    if node not in labels.unreduced:
        if addend(node) in labels.unreduced:
            return f"done once for all that need %{addend(node).name} reduced"
        return f"hoisted above {addend(node).target}"
    joint = labels.found[node].joint
    movers = [*(user for user in node.users if user in labels.unreduced), *joint]
    if not movers or labels.demanded(node):
        return ""
    how = "reduced with" if movers[0] in joint else "moved below"
    return f"{how} {movers[0].target}"


def _kept(node: fx.Node, known: Facts, found: Mapping[fx.Node, Carrier]) -> str:
    """Why the reduction with result ``node`` was not moved.

    The first of its readers that needs it reduced; that nothing is saved, if all could do without.
    """
    for user in node.users:
        if user.op == "output":
            return "the graph returns its result"
        if user in found or user in found[node].joint:
            continue
        if user.target in OPS:
            return _sent(user, known)
        if reads_shape(user):
            continue
        partial = [x for x in access.operands(user) if x in found and not found[x].addend]
        why = refusal(user, partial, known) or "read by no linear op"
        return why + _widened(node, user, known)
    here = access.payload_bytes(node)
    for user in node.users:
        if user in found and access.is_tensor(user) and access.payload_bytes(user) > here:
            there = access.payload_bytes(user)
            return f"moving it below {user.target} costs {there} bytes instead of {here}"
    return "moving it saves nothing"


def _sent(user: fx.Node, known: Facts) -> str:
    """Why the collective ``user`` does not take the unreduced form."""
    other, mine = reduction_of(known.graph, user), known.reduction
    if other is not None and not other.scatters and not mine.scatters:
        if other.kind != mine.kind:
            return f"%{user.name} is a reduction of another kind, {other.kind}"
        if product(mine.groups, other.groups) is None:
            return f"%{user.name} reduces over {other.group}, not orthogonal to {mine.group}"
        return f"no process group for {mine.group} and {other.group} together can be made"
    what = collective(user)
    assert what is not None, f"%{user.name} is no collective"
    return f"{what.kind} %{user.name} sends its result"


def _widened(node: fx.Node, user: fx.Node, known: Facts) -> str:
    """What crossing the widening cast ``user`` would lead to."""
    rule = known.graph.meanings.get(user)
    if known.widen or rule is None or not rule.casts or not widens(user):
        return ""
    wide = carriers(known.graph, facts(known.graph, known.reduction, widen=True, join=known.join))
    seen, queue = {node}, [user]
    while queue:
        at = queue.pop(0)
        if at not in wide or at in seen:
            continue
        seen.add(at)
        if others := [x for x in wide[at].operands if x not in seen]:
            return f"; with it, %{node.name} and %{others[0].name} would meet in %{at.name}"
        queue += at.users
    return ""


__all__ = ["remarks"]
