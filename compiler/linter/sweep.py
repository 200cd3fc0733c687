"""One sweep in graph order: what the ranks hold of every value, and the mistakes on the way."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from compiler.analysis.replication import replicated_over
from compiler.ir import access
from compiler.ir.collectives import WAIT
from compiler.ir.placement import Partial, Placement
from compiler.linter import gathers
from compiler.linter.after_collectives import after_collective
from compiler.linter.calls import UNKNOWN, WHOLE, Mistake, after_call
from compiler.linter.facts import Known
from compiler.linter.finding import Finding


def sweep(known: Known) -> Iterator[Finding]:
    """Fills ``known.states``; yields findings about calls and collectives."""
    parts: dict[tuple[fx.Node, int], dict[str, Placement]] = {}
    for node in known.graph.graph.nodes:
        if node.op == "output":
            continue
        if node.op in ("placeholder", "get_attr"):
            given = zip(known.graph.mesh.axes, known.graph.inputs[str(node.target)], strict=True)
            known.states[node] = {axis: p for axis, p in given if axis in known.axes}
        elif (what := known.collective(node)) is not None:
            found = list(after_collective(known, node, what))
            yield from found if node in known.live else ()
        elif node.target is WAIT:
            known.states[node] = known.states[access.operands(node)[0]]
        elif (index := access.projection(node)) is not None and (
            (access.operands(node)[0], index) in parts
        ):
            known.states[node] = parts[access.operands(node)[0], index]
        elif node in known.meanings:
            yield from _called(known, node, parts)
        else:
            known.states[node] = _sameness(known, node)


def _sameness(known: Known, node: fx.Node) -> dict[str, Placement]:
    """Whole where the replication analysis says so, else unknown."""
    if node not in known.classes:
        return dict.fromkeys(known.axes, UNKNOWN)
    same = known.classes[node]
    groups = known.graph.mesh.groups
    return {a: WHOLE if replicated_over(same, groups[a]) else UNKNOWN for a in known.axes}


def _called(
    known: Known, node: fx.Node, parts: dict[tuple[fx.Node, int], dict[str, Placement]]
) -> Iterator[Finding]:
    states = _sameness(known, node)
    several = isinstance(access.value(node), list | tuple)
    for axis in known.axes:
        if states[axis] == WHOLE:
            continue
        outcome = after_call(known, node, axis)
        results, mistake = outcome.results, outcome.mistake
        nonlinear = mistake is not None and mistake.rule == "nonlinear-on-partial"
        if mistake is not None and nonlinear and gathers.is_compressed(known, mistake.operand):
            results, mistake = (UNKNOWN,) * len(results), None
        states[axis] = results[0] if results else UNKNOWN
        for i, placement in enumerate(results if several else ()):
            parts.setdefault((node, i), {})[axis] = placement
        if mistake is not None:
            yield from _reported(known, node, mistake, axis)
    known.states[node] = states
    if several:  # what the ranks hold of all results together
        for i in range(len(access.value(node))):
            known_part = parts.setdefault((node, i), {})
            parts[node, i] = {a: known_part.get(a, states[a]) for a in known.axes}


def _reported(known: Known, node: fx.Node, mistake: Mistake, axis: str) -> Iterator[Finding]:
    """The finding, unless nothing depends on the value or its sum was missed before."""
    is_partial = isinstance(known.states[mistake.operand][axis], Partial)
    if node not in known.live or (is_partial and (mistake.operand, axis) in known.reported):
        return
    if is_partial:
        known.reported.add((mistake.operand, axis))
    problem, remedy = TEXTS[mistake.rule](known, node, mistake, axis)
    yield known.finding(mistake.rule, node, problem, remedy)


def _owed(known: Known, mistake: Mistake, axis: str) -> tuple[str, str]:
    """``%5 holds an addend per rank of tp``, and the reduction that is missing."""
    name, ranks = known.name(mistake.operand), known.ranks((axis,))
    return (
        f"{name}, a partial sum over the {ranks} ranks of {axis}",
        f"all_reduce({name}) over {axis}",
    )


def _nonlinear(known: Known, node: fx.Node, mistake: Mistake, axis: str) -> tuple[str, str]:
    owed, reduction = _owed(known, mistake, axis)
    return (
        f"{known.op(node)} is not linear, and is applied to {owed}",
        f"{reduction} before {known.name(node)}",
    )


def _missing(known: Known, node: fx.Node, mistake: Mistake, axis: str) -> tuple[str, str]:
    owed, reduction = _owed(known, mistake, axis)
    if mistake.other is None:
        beside = "a constant"
    else:
        held = known.states[mistake.other][axis]
        beside = f"{known.name(mistake.other)}, which is {'whole' if held == WHOLE else held}"
    return (
        f"{known.op(node)} combines {owed}, with {beside}; the sum over {axis} is never taken",
        f"{reduction} before {known.name(node)}",
    )


def _mixed(known: Known, node: fx.Node, mistake: Mistake, axis: str) -> tuple[str, str]:
    kinds = sorted(
        f"{known.name(x)} of kind {p.op}"
        for x in dict.fromkeys(access.operands(node))
        if isinstance(p := known.states[x][axis], Partial)
    )
    return (
        f"{known.op(node)} mixes partial results over {axis}: {', '.join(kinds)}",
        "reduce each with its own op first",
    )


def _meets_whole(known: Known, node: fx.Node, mistake: Mistake, axis: str) -> tuple[str, str]:
    assert mistake.other is not None, "a shard meets something"
    name, shard = known.name(mistake.operand), known.name(mistake.other)
    held = known.states[mistake.other][axis]
    return (
        f"{known.op(node)} combines {shard}, which is {held} over {axis}, with {name}, which is "
        f"the same on every rank of {axis}: each block meets the same elements",
        f"this rank's block of {name}, or an all_gather of {shard} over {axis} first; if {name} "
        f"differs between ranks, declare its placement",
    )


def _crossed(known: Known, node: fx.Node, mistake: Mistake, axis: str) -> tuple[str, str]:
    assert mistake.other is not None, "a shard meets something"
    name, other = known.name(mistake.operand), known.name(mistake.other)
    held, against = (known.states[x][axis] for x in (mistake.operand, mistake.other))
    return (
        f"{known.op(node)} combines {name}, which is {held} over {axis}, with {other}, which is "
        f"{against}: each rank computes one block of the diagonal, and nobody the others",
        f"an all_gather of {name} over {axis} first",
    )


TEXTS = {
    "nonlinear-on-partial": _nonlinear,
    "missing-reduction": _missing,
    "wrong-kind": _mixed,
    "sharded-meets-whole": _meets_whole,
    "crossed-shards": _crossed,
}
