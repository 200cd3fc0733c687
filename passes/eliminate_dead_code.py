"""Remove values that nothing reads.

Before    %1: f32[4, 8] {tp: R} = comm.all_reduce(%0) {axis = tp, op = sum}
          %2: f32[4, 8] {tp: P} = aten.neg(%0)
          return %2
After     %1: f32[4, 8] {tp: P} = aten.neg(%0)
          return %1

Law       a functional op has no effect but its result.
Exact     bit by bit.
Requires  nothing. Ops without a result (assertions), random ops and placeholders stay; but not
          assertions about element type and device, which capture has settled.
Ensures   every value is read, or is there for its effect.
Saves     what the removed ops cost; all ranks hold the same graph, so collectives go together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from compiler.ir import access
from compiler.ir.graph import SpmdGraph
from compiler.ir.graph_copy import GraphCopy
from compiler.ir.remark import PassResult

aten = torch.ops.aten


@dataclass(frozen=True)
class EliminateDeadCode:
    """Removes dead values."""

    name: ClassVar[str] = "eliminate-dead-code"

    def apply(self, graph: SpmdGraph) -> PassResult:
        """The graph without values that nothing reads."""
        kept: set[fx.Node] = set()
        for node in reversed(graph.graph.nodes):
            if has_effect(graph, node) or any(user in kept for user in node.users):
                kept.add(node)
        if len(kept) == len(graph.graph.nodes):
            return PassResult(graph, (), changed=False)
        copy = GraphCopy()
        copy.add_all(node for node in graph.graph.nodes if node in kept)
        return PassResult(graph.with_graph(copy.target, copy.origins), (), changed=True)


def has_effect(graph: SpmdGraph, node: fx.Node) -> bool:
    """Whether the node must stay though nothing reads it."""
    if node.op in ("placeholder", "output"):
        return True
    if not access.has_result(node):
        return node.target is not aten._assert_tensor_metadata.default
    rule = graph.meanings.get(node)
    return rule is not None and rule.random
