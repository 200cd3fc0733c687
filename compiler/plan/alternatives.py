"""What the second cut may choose besides shares of rows: rows sent to experts, fused kernels."""

from __future__ import annotations

from torch import fx

from compiler.analysis.cache import cached
from compiler.analysis.expert_regions import region
from compiler.analysis.norm_regions import NormRegion, Recognizer
from compiler.check.row_ownership import Owners, greatest_id, owners
from compiler.ir.collectives import Kind, collectives
from compiler.ir.graph import SpmdGraph
from compiler.plan.fused_kernels import NormBehind
from compiler.plan.row_cut import Dispatch


@cached
def norms_behind(graph: SpmdGraph, group: str) -> list[NormBehind]:
    """Sums over the ranks of a group with an addition and a norm that one kernel does with them."""
    groups, recognizer, norms = graph.mesh.group(group), Recognizer(graph), []
    for _, what in collectives(graph.graph):
        if what.kind is not Kind.ALL_REDUCE or graph.mesh.group(what.group) != groups:
            continue
        norm = recognizer.fusable(what)
        if isinstance(norm, NormRegion) and what.result is not None:
            norms.append(NormBehind(what.result, norm.rows))
    return norms


@cached
def dispatches(graph: SpmdGraph, group: str) -> tuple[dict[fx.Node, Dispatch], dict[fx.Node, str]]:
    """All_reduces whose addends come from rows that may be sent to the ranks that need them.

    And those of which rows are routed, but may not be sent, with the reason.
    """
    groups = graph.mesh.group(group)
    regions, refused = dict[fx.Node, Dispatch](), dict[fx.Node, str]()
    if groups.axis_size == 1:
        return regions, refused
    for _, what in collectives(graph.graph):
        is_sum = what.kind is Kind.ALL_REDUCE and what.op == "sum" and what.result is not None
        if not is_sum or graph.mesh.group(what.group) != groups or len(what.operand.users) != 1:
            continue
        inner = region(graph, what.operand, groups)
        if inner is None or what.result is None or not any(map(greatest_id, inner.inputs)):
            continue
        ownership = owners(graph, groups, inner.inputs, inner.nodes)
        if isinstance(ownership, Owners):
            regions[what.result] = Dispatch(inner, ownership.copies)
        else:
            refused[what.result] = ownership
    return regions, refused
