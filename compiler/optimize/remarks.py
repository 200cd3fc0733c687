"""What is said of an optimized graph: what was done, what was not, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import fx

from compiler.analysis.reductions import reduction_of
from compiler.analysis.replication import replicated_over, replication
from compiler.analysis.row_shards import only_own_rows_read
from compiler.analysis.statistics import statistics
from compiler.ir import access
from compiler.ir.collectives import WAIT, Kind, collective
from compiler.ir.dialects import called, remedy, unknown_collectives
from compiler.ir.graph import SpmdGraph
from compiler.ir.remark import Remark, RemarkKind
from compiler.pipeline import PassRecord
from compiler.plan.decision import Decision
from compiler.plan.planner import Planner
from passes import PlaceReductions

SHARE = "with a machine (--machine) rows are shared where that takes less time"
UNVERIFIED = "verification was switched off: the graph is unproved"


def remarks(
    planner: Planner, decision: Decision, tokens: int | None, *, verify: bool
) -> Iterator[Remark]:
    """Yield the remarks on a plan at some token count, of all passes and of the whole."""
    rewritten, policy = planner.write(decision), planner.options.policy
    yield from _general(planner.source, policy, verify=verify)
    yield from _still_true(rewritten.pipeline.records)
    if policy != "off":
        yield from _of_the_same(rewritten.graph)
        yield from _unscattered(rewritten.graph)
    for node, why in planner.unsent(decision, tokens):
        yield _missed(node, f"rows are not sent to experts: {why}")


def _general(source: SpmdGraph, policy: str, *, verify: bool) -> Iterator[Remark]:
    notes, unread = [], tuple(unknown_collectives(source.graph))
    if source.mesh.size == 1:
        notes.append("world size 1: no rank owes another a sum, nothing to optimize")
    elif not statistics(source.graph).collectives and not unread:
        notes.append("the graph has no collectives, nothing to optimize")
    if policy == "off":
        notes.append("policy 'off': reductions stay where they are")
    if not verify:
        notes.append(UNVERIFIED)
    without_rule = sorted({str(n.target) for n, m in source.meanings.items() if m is None})
    if without_rule:
        notes.append(f"ops without a rule, left alone: {', '.join(without_rule)}")
    for name, (node, why) in {str(called(n)): (n, why) for n, why in unread}.items():
        text = f"{name} looks like a collective by {why}, and nothing says what it does: "
        notes.append(text + remedy(node))
    yield from (Remark(RemarkKind.NOTE, "", why) for why in notes)


def _still_true(records: Sequence[PassRecord]) -> Iterator[Remark]:
    """Remarks of all passes, but of those reductions kept that a later one moved or scattered."""
    moved: list[set[tuple[str, str]]] = [set()]
    for record in reversed(records):
        passed = {(r.value, r.layer) for r in record.remarks if r.kind is RemarkKind.PASSED}
        moved.append(moved[-1] | passed)
    for record, later in zip(records, reversed(moved[:-1]), strict=True):
        for remark in record.remarks:
            kept = record.name == PlaceReductions.name and remark.kind is RemarkKind.MISSED
            if not kept or (remark.value, remark.layer) not in later:
                yield remark


def _of_the_same(graph: SpmdGraph) -> Iterator[Remark]:
    """Reductions of what ranks hold alike: no rank owes another a term, so no law moves them."""
    same = replication(graph)
    for node in graph.graph.nodes:
        what = collective(node) if node.target is WAIT else None
        reduction = reduction_of(graph, node) if what else None
        if what is None or reduction is None or reduction.groups.axis_size == 1:
            continue
        if replicated_over(same[what.operand], reduction.groups):
            why = (
                f"{what.kind} kept: by the placements of the graph's inputs its operand is the "
                "same on every rank; declare inputs that differ in inputs= (--input)"
            )
            yield _missed(node, why)


def _unscattered(graph: SpmdGraph) -> Iterator[Remark]:
    """All_reduces that are left although ranks read no more than their own rows."""
    for groups in dict.fromkeys(graph.mesh.groups.values()):
        own = only_own_rows_read(graph, groups)
        for node in filter(own.__contains__, graph.graph.nodes):  # sets have orders of their own
            what = collective(node)
            if what is not None and what.kind is Kind.ALL_REDUCE:
                why = f"{what.kind} kept: the plan shares no rows of which ranks read their own"
                yield _missed(node, why, SHARE)


def _missed(node: fx.Node, why: str, remedy: str = "") -> Remark:
    """A remark on a collective, in the layer of its operand."""
    what = collective(node)
    layer = access.layer_path(what.operand) if what else ""
    return Remark(RemarkKind.MISSED, f"%{node.name}", why, layer, remedy)
