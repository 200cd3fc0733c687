"""Why a reduction stays where its author put it: the text of a missed remark."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from compiler.analysis.carriers import Carrier, carriers
from compiler.analysis.reductions import Facts, facts, reads_shape, reduction_of
from compiler.analysis.refusals import refusal, widens
from compiler.ir import access
from compiler.ir.collectives import OPS, collective
from compiler.ir.mesh import product


def kept(node: fx.Node, known: Facts, found: Mapping[fx.Node, Carrier]) -> str:
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


__all__ = ["kept"]
