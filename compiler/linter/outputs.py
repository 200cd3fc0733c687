"""Partial sums that leave the graph, and collectives that nothing depends on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import fx

from compiler.ir import access
from compiler.ir.collectives import OPS
from compiler.ir.placement import Partial
from compiler.linter.facts import Known, is_send, listed
from compiler.linter.finding import Finding


def what_leaves(known: Known, written: Mapping[int, str]) -> Iterator[Finding]:
    """Partial sums that are returned, written back or sent.

    Args:
        known: facts, placements included.
        written: output -> input that it is written back to.
    """
    for node in known.graph.graph.nodes:
        if is_send(node):
            for x in access.operands(node):
                yield from _partial(known, x, f"{known.op(node)} sends it on")
    results = access.results(access.output(known.graph.graph))
    for i, node in enumerate(results):
        if i in written:
            how = f"output {i} writes it back to {written[i]!r}"
        else:
            how = f"it is returned as output {i}"
        yield from _partial(known, node, how)


def _partial(known: Known, node: fx.Node, how: str) -> Iterator[Finding]:
    held = known.states.get(node, {})
    axes = [a for a in known.axes if isinstance(held.get(a), Partial)]
    if not axes or all((node, a) in known.reported for a in axes):
        return
    known.reported.update((node, a) for a in axes)
    name, kind, ranks = known.name(node), held[axes[0]], known.ranks(axes)
    what = f"partial {kind.op if isinstance(kind, Partial) else kind}"
    yield known.finding(
        "partial-output",
        node,
        f"{name} is a {what} over the {ranks} ranks of {listed(axes)}, and {how}",
        f"all_reduce({name}) over {listed(axes)} before it leaves the graph",
    )


def unused(known: Known) -> Iterator[Finding]:
    """Collectives whose results reach nothing."""
    for node in known.graph.graph.nodes:
        if node.target in OPS and node not in known.live:
            yield known.finding(
                "unused-collective",
                node,
                f"nothing that the graph returns depends on this {OPS[node.target]}",
                "use its result, or leave it out",
            )
