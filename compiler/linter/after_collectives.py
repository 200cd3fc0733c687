"""Collectives: what the ranks hold afterwards, and reductions over the wrong ranks or values."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from compiler.analysis.replication import replicated_over
from compiler.ir.collectives import Collective, Kind
from compiler.ir.placement import Partial, Placement, Shard
from compiler.linter import gathers
from compiler.linter.calls import UNKNOWN, WHOLE
from compiler.linter.facts import REDUCING, Known, concrete_shape, listed
from compiler.linter.finding import Finding

ADDING = ("sum", "product")
"""Reductions that count equal operands as often as there are ranks."""

KINDS = ("sum", "avg", "max", "min", "product")
"""Reductions whose parts are told apart by name."""


def after_collective(known: Known, node: fx.Node, what: Collective) -> Iterator[Finding]:
    """Sets the state of ``node``; yields what is wrong with it."""
    axes, held = known.group_axes(what), known.states[what.operand]
    if axes is None:
        yield from _irregular(known, node, what)
        return
    known.states[node] = {
        axis: _inside(held[axis], what) if axis in axes else _outside(held[axis], what)
        for axis in known.axes
    }
    if what.kind in REDUCING and axes:
        yield from _reduced(known, node, what, axes)
    elif what.kind in (Kind.ALL_GATHER, Kind.BROADCAST):
        yield from gathers.gathered(known, node, what, axes)


def _inside(held: Placement, what: Collective) -> Placement:
    """Along an axis of the group."""
    match what.kind:
        case Kind.REDUCE_SCATTER:
            return Shard(0)
        case Kind.ALL_TO_ALL:
            return UNKNOWN
    return WHOLE


def _outside(held: Placement, what: Collective) -> Placement:
    """Along another axis: reductions that are linear keep addends, moved rows lose their blocks."""
    match held:
        case Partial() if what.kind in REDUCING:
            return held if held.op == what.op or {held.op, what.op} == {"sum", "avg"} else UNKNOWN
        case Shard(dim=0) if what.kind not in (Kind.ALL_REDUCE, Kind.BROADCAST):
            return UNKNOWN
    return held


def _irregular(known: Known, node: fx.Node, what: Collective) -> Iterator[Finding]:
    """A group that is no product of axes: only equality is known, exactly."""
    groups, same = known.graph.mesh.group(what.group), known.classes
    along = known.graph.mesh.groups
    known.states[node] = {
        a: WHOLE if replicated_over(same[node], along[a]) else UNKNOWN for a in known.axes
    }
    whole = replicated_over(same[what.operand], groups) and groups.axis_size > 1
    if what.kind in REDUCING and what.op in ADDING and whole:
        yield from _counted(known, node, what, groups.axis_size, f"group {what.group!r}")


def _reduced(
    known: Known, node: fx.Node, what: Collective, axes: tuple[str, ...]
) -> Iterator[Finding]:
    held, name, kind = known.states[what.operand], known.name(what.operand), what.kind
    whole = known.whole(what.operand, axes)
    owed = [a for a in known.axes if a not in axes and held[a] == Partial("sum")]
    if whole and what.op in ADDING:
        inside, ranks = [a for a in axes if a in whole], known.ranks(whole)
        if len(whole) == len(axes) and not owed:
            yield from _counted(known, node, what, ranks, listed(axes))
        elif not _intended(known, node, what, ranks):
            yield known.finding(
                "wrong-group",
                node,
                f"{kind} over {listed(axes)} of {name}, which is the same on every rank of "
                f"{listed(inside)}: it counts {ranks} times"
                + (f"; the ranks of {listed(owed)} hold its addends" if owed else ""),
                f"{kind} over {listed([a for a in axes if a not in whole] + owed)}",
            )
            known.states[node] |= dict.fromkeys(owed, WHOLE)
    if what.op == "avg" and any(held[a] == Partial("sum") for a in axes):
        ranks = known.ranks(axes)
        if not (known.is_rescaled(what.operand) or known.is_scaled_later(node, ranks)):
            yield _of_kind(known, node, what, "sum", axes)
    else:
        kinds = [p.op for a in axes if isinstance(p := held[a], Partial)]
        if kinds and {kinds[0], what.op} <= set(KINDS) and kinds[0] != what.op:
            yield _of_kind(known, node, what, kinds[0], axes)
    yield from _sums_shards(known, node, what, axes)


def _of_kind(
    known: Known, node: fx.Node, what: Collective, kind: str, axes: tuple[str, ...]
) -> Finding:
    return known.finding(
        "wrong-kind",
        node,
        f"{what.kind} takes the {what.op} over {listed(axes)} of {known.name(what.operand)}, whose "
        f"value is the {kind} of what the ranks hold",
        f"{what.kind} with op = {kind}",
    )


def _counted(
    known: Known, node: fx.Node, what: Collective, ranks: int, over: str
) -> Iterator[Finding]:
    if _intended(known, node, what, ranks):
        return
    name = known.name(what.operand)
    effect = f"multiplied by {ranks}" if what.op == "sum" else f"taken to the power of {ranks}"
    yield known.finding(
        "double-reduction",
        node,
        f"{what.kind} over {over} of {name}, which is already the same on all {ranks} ranks: "
        f"it is {effect}",
        f"{name} itself" + (", this rank's rows of it" if what.kind is Kind.REDUCE_SCATTER else "")
        + "; if it is meant to hold addends, declare the placements of what it is computed from",
    )  # fmt: skip


def _intended(known: Known, node: fx.Node, what: Collective, ranks: int) -> bool:
    """Whether equal operands are added on purpose: ranks are counted, or 1 / ranks is applied."""
    readers = [reader for wait in node.users for reader in wait.users]
    divided = bool(readers) and all(known.is_scaled(reader, ranks) for reader in readers)
    return (
        what.operand in known.constants
        or divided
        or known.is_scaled_later(node, 1 / ranks)
        or known.is_scaled(what.operand, ranks)
    )


def _sums_shards(
    known: Known, node: fx.Node, what: Collective, axes: tuple[str, ...]
) -> Iterator[Finding]:
    """Blocks of more than one row added up; of one row each they are the rows themselves."""
    shape = concrete_shape(what.operand)
    for axis in axes:
        held = known.states[what.operand][axis]
        if what.op not in ("sum", "avg") or not isinstance(held, Shard) or shape[held.dim] == 1:
            continue
        name = known.name(what.operand)
        yield known.finding(
            "sums-shards",
            node,
            f"{what.kind} over {axis} of {name}, of which every rank holds another block along "
            f"dimension {held.dim} ({held}): it adds elements that do not belong together",
            f"all_gather({name}) over {axis}, or the sum before {name} is cut",
        )
