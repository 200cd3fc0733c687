"""Partial sums and shards that a call, or whoever gets the graph's results, takes to be whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import fx

from compiler.analysis.placements import REPLICATE, Violation
from compiler.ir import access
from compiler.ir.placement import Partial
from compiler.linter.facts import LintFacts, is_send, listed
from compiler.linter.finding import Finding


def misused_values(facts: LintFacts, written: Mapping[int, str]) -> Iterator[Finding]:
    """Yield findings about operands of calls, and about partial sums that leave the graph.

    A partial sum is reported once per axis: its reduction is missing, wherever it is used.

    Args:
        facts: facts about the graph.
        written: output -> input that it is written back to.
    """
    unreduced: set[tuple[fx.Node, str]] = set()
    _, mistakes = facts.analysis
    for mistake in mistakes:
        operand, axis = mistake.operands[0], mistake.axis
        if mistake.node in facts.live and (operand, axis) not in unreduced:
            if axis in facts.partial_axes(operand):
                unreduced.add((operand, axis))
            yield _misused(facts, mistake)
    for node, how in _leaving(facts, written):
        axes = facts.partial_axes(node)
        if not unreduced.issuperset((node, axis) for axis in axes):
            unreduced |= {(node, axis) for axis in axes}
            placement = facts.placement(node, axes[0])
            kind = placement.op if isinstance(placement, Partial) else ""
            yield facts.finding(
                "partial-output",
                node,
                f"{facts.name(node)} is a partial {kind} over the {facts.ranks(axes)} ranks of "
                f"{listed(axes)}, and {how}",
                f"all_reduce({facts.name(node)}) over {listed(axes)} before it leaves the graph",
            )


def _leaving(facts: LintFacts, written: Mapping[int, str]) -> Iterator[tuple[fx.Node, str]]:
    """Yield the values that are sent, written back or returned, and how."""
    for node in facts.nodes:
        if is_send(node):
            yield from ((x, f"{facts.op(node)} sends it on") for x in access.operands(node))
    for i, node in enumerate(access.results(access.output(facts.graph.graph))):
        back = f"output {i} writes it back to {written[i]!r}" if i in written else ""
        yield node, back or f"it is returned as output {i}"


def _misused(facts: LintFacts, mistake: Violation) -> Finding:
    """Return the finding about one call along one axis."""
    node, axis, op = mistake.node, mistake.axis, facts.op(mistake.node)
    placements = [facts.placement(x, axis) for x in mistake.operands]
    name, other = (facts.name(x) for x in (*mistake.operands, node)[:2])
    averaged = placements[0] == Partial("avg")
    noun = "each rank's mean" if averaged else "a partial sum"
    partial = f"{name}, {noun} over the {facts.ranks((axis,))} ranks of {axis}"
    beside = "a constant"
    if len(placements) > 1:
        beside = f"{other}, which is {'whole' if placements[1] == REPLICATE else placements[1]}"
    how = " with op = avg" if averaged else ""
    problem, remedy = "", f"all_reduce({name}) over {axis}{how} before {facts.name(node)}"
    match mistake.kind:
        case "nonlinear-on-partial":
            problem = f"{op} is not linear, and is applied to {partial}"
        case "missing-reduction":
            problem = f"{op} combines {partial}, with {beside}; the sum over {axis} is never taken"
        case "wrong-kind":
            kinds = sorted(
                f"{facts.name(x)} of kind {p.op}"
                for x in dict.fromkeys(access.operands(node))
                if isinstance(p := facts.placement(x, axis), Partial)
            )
            problem = f"{op} mixes partial results over {axis}: {', '.join(kinds)}"
            remedy = "reduce each with its own op first"
        case "sharded-meets-whole":
            problem = (
                f"{op} combines {beside} over {axis}, with {name}, which is the same on "
                f"every rank of {axis}: each block meets the same elements"
            )
            remedy = (
                f"this rank's block of {name}, or an all_gather of {other} over {axis} first; if "
                f"{name} differs between ranks, declare its placement"
            )
        case "crossed-shards":
            problem = (
                f"{op} combines {name}, which is {placements[0]} over {axis}, with {beside}: "
                f"each rank computes one block of the diagonal, and nobody the others"
            )
            remedy = f"an all_gather of {name} over {axis} first"
    return facts.finding(mistake.kind, node, problem, remedy)
