"""Export assignments as numbered values.

Nodes mean something in one graph of one process. Numbers mean the same in every copy of a graph:
ranks compare them, and files store them.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from compiler.analysis.expert_regions import region
from compiler.analysis.partial_forms import PartialAssignment
from compiler.analysis.partial_values import PartialValues
from compiler.analysis.reductions import ReductionFacts
from compiler.analysis.row_shards import SIZE_READ, RowAssignment, reads_share
from compiler.analysis.traversal import reached
from compiler.ir import access
from compiler.ir.collectives import Kind
from compiler.ir.comm_plan import PlacedReduction, RowStage, Stage
from compiler.ir.text import numbers


def reduction_stage(assignment: PartialAssignment, tokens: int | None = None) -> Stage:
    """Return the assignment as part of a plan, payloads counted at ``tokens``."""
    facts, values = assignment.facts, assignment.values
    number, reduction = numbers(facts.graph.graph), facts.reduction
    parts = payload_parts(facts)
    sums = [n for n in values if values[n].reduces]
    placed = []
    for node in values:
        if node in assignment.partial and assignment.demanded(node):
            computed = _computed(node, values)
            placed.append(
                PlacedReduction(
                    value=number[computed],
                    op=str(computed.target),
                    layer=access.layer_path(computed),
                    payload_bytes=parts * access.payload_bytes(node, tokens),
                    merges=_merges(node, values),
                )
            )
    return Stage(
        group=reduction.group,
        kind=reduction.kind,
        unreduced=tuple(sorted({number[n] for n in assignment.partial})),
        reductions=tuple(placed),
        before=len(sums),
        before_payload_bytes=sum(parts * access.payload_bytes(n, tokens) for n in sums),
        scatters=reduction.scatters,
        widen=facts.allow_dtype_widening,
        join=facts.allow_new_groups,
    )


def row_stage(assignment: RowAssignment) -> RowStage:
    """Return the assignment as part of a plan."""
    number, forms = numbers(assignment.graph.graph), assignment.forms
    collectives = [form.communicates for form in forms.values() if form.communicates is not None]
    sent = [what.operand for what in collectives if what.operand in assignment.dispatched]
    return RowStage(
        group=assignment.group,
        shares=tuple(number[node] for node in forms),
        reduce_scatters=[what.kind for what in collectives].count(Kind.ALL_REDUCE) - len(sent),
        all_gathers=len(list(_gathered(assignment))),
        dispatches=tuple(number[operand] for operand in sent),
    )


def payload_parts(facts: ReductionFacts) -> int:
    """Return how many times its Replicate form a value's reduction sends: all ranks' rows."""
    return facts.reduction.groups.axis_size if facts.reduction.scatters else 1


def _computed(node: fx.Node, values: PartialValues) -> fx.Node:
    """Return the op whose result is reduced: an all_reduce stands for its addend."""
    while values[node].reduces:
        (node,) = values[node].operands
    return node


def _merges(node: fx.Node, values: PartialValues) -> int:
    """Return how many of the author's all_reduces meet, Partial, in ``node``."""
    cone = reached([node], lambda n: () if values[n].reduces else values[n].operands)
    return sum(values[n].reduces for n in cone)


def _gathered(assignment: RowAssignment) -> Iterator[fx.Node]:
    """Yield the shards of which somebody reads all rows."""
    graph, groups, forms = assignment.graph, assignment.groups, assignment.forms
    regions = [region(graph, output, groups) for output in assignment.dispatched]
    sent = {node for each in regions if each is not None for node in each.nodes}
    for node in filter(access.is_tensor, forms):
        for user in node.users:
            reads_rows = user in forms and node in forms[user].carrying
            if not (
                reads_rows
                or user in sent
                or user.target is SIZE_READ
                or reads_share(graph, user, groups)
            ):
                yield node
                break
