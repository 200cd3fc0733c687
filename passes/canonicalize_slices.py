"""Name slices that take this rank's own share of rows.

Before    %1: f32[4, 4] {tp: V} = aten.slice.Tensor(%0, 0, rank(0, 4), rank(4, 8))
After     %1: f32[4, 4] {tp: S(0)} = commplan.all_slice(%0, 0, 2, "tp")

Law       the rank at position i of n takes rows i m / n … (i + 1) m / n of m.
Exact     bit by bit.
Requires  the first row of every rank is a number, n divides m, and the mesh has groups in which
          every rank's position fits its rows.
Ensures   nothing else changes; a reduction that is only read so can become a reduce_scatter.
Saves     nothing by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from compiler.ir import access
from compiler.ir.graph import SpmdGraph
from compiler.ir.graph_copy import GraphCopy
from compiler.ir.remark import PassResult, Remark, RemarkKind
from compiler.ir.row_ops import ALL_SLICE

aten = torch.ops.aten
SLICES = (aten.slice.Tensor, aten.narrow.default)


@dataclass(frozen=True)
class CanonicalizeSlices:
    """Replaces every such slice by all_slice."""

    name: ClassVar[str] = "canonicalize-slices"

    def apply(self, graph: SpmdGraph) -> PassResult:
        """The graph with own slices named."""
        group_of = {
            n: group for n in graph.graph.nodes if (group := own_group(graph, n)) is not None
        }
        if not group_of:
            return PassResult(graph, (), changed=False)
        copy = GraphCopy()
        copy.add_all(graph.graph.nodes)
        for node, group in group_of.items():
            named, ranks = copy.values[node], graph.mesh.group(group).axis_size
            dim = int(access.arguments(node)["dim"])
            named.target = ALL_SLICE
            named.args, named.kwargs = (*named.all_input_nodes, dim, ranks, group), {}
            del copy.origins[named]
        why = "own slice named"
        remarks = tuple(Remark(RemarkKind.PASSED, f"%{n.name}", why) for n in group_of)
        target = graph.with_graph(copy.target, copy.origins)
        return PassResult(target, remarks, changed=True)


def own_group(graph: SpmdGraph, node: fx.Node) -> str | None:
    """Name of the groups of which ``node`` takes every rank's own rows, None for other ops."""
    if node.target not in SLICES or len(node.all_input_nodes) != 1:
        return None
    arguments = access.arguments(node)
    (x,) = access.operands(node)
    rows, kept = (access.shape(v)[int(arguments["dim"])] for v in (x, node))
    start = arguments.get("start")
    if not isinstance(start, access.RankInt) or arguments.get("step", 1) != 1:
        return None
    if not isinstance(rows, int) or not isinstance(kept, int) or not kept or rows % kept:
        return None
    for name, groups in graph.mesh.groups.items():
        own = [groups.position[r] * kept for r in range(graph.mesh.size)]
        if groups.axis_size == rows // kept and own == list(start.values):
            return name
    return None
