"""Remove ops that hold what one of their operands holds.

Before    %2: f32[4, 8] {tp: R} = comm.all_reduce(%1) {axis = tp, op = sum}
          %3: f32[4, 8] {tp: R} = aten.copy(%1, %2)
          %4: f32[32] {tp: R} = aten.view(%3, [32])
          %5: f32[4, 8] {tp: R} = aten.view(%4, [4, 8])
          return %5
After     %2: f32[4, 8] {tp: R} = comm.all_reduce(%1) {axis = tp, op = sum}
          return %2

Law       copy(d, x) = x;  wait(wait(x)) = wait(x);  view to the shape of x of views of x = x;
          whatever waits for one collective holds the same;
          collectives over groups of one rank, of every kind and reduction: x = x.
Exact     bit by bit.
Requires  same shape, strides, element type and device on both sides.
Ensures   in-place collectives (which capture turns into a collective and a copy) and functional
          ones give the same graph.
Saves     a copy of the tensor where the runtime would make one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from compiler.ir import access
from compiler.ir.collectives import WAIT, collective
from compiler.ir.graph import SpmdGraph
from compiler.ir.graph_copy import GraphCopy
from compiler.ir.remark import PassResult, Remark, RemarkKind
from compiler.ir.rules import RESHAPE
from compiler.ir.rules.meaning import same_layout, size_key

aten = torch.ops.aten


@dataclass(frozen=True)
class Canonicalize:
    """Replaces every such op by its operand; dead ones are left to eliminate-dead-code."""

    name: ClassVar[str] = "canonicalize"

    def apply(self, graph: SpmdGraph) -> PassResult:
        """The graph without ops that repeat an operand."""
        stands_for: dict[fx.Node, fx.Node] = {}
        remarks: list[Remark] = []
        for node in graph.graph.nodes:
            operand = holds(graph, node)
            if operand is None or not same_layout(node, operand):
                continue
            stands_for[node] = stands_for.get(operand, operand)
            waited = collective(node) if node.target is WAIT else None
            if waited is not None and operand is waited.operand:
                why = f"{waited.kind} over groups of one rank removed"
                remarks.append(Remark(RemarkKind.PASSED, f"%{node.name}", why))
        if not stands_for:
            return PassResult(graph, (), changed=False)
        copy = GraphCopy()
        for node in graph.graph.nodes:
            if node in stands_for:
                copy.values[node] = copy.values[stands_for[node]]
            else:
                copy.add(node)
        target = graph.with_graph(copy.target, copy.origins)
        return PassResult(target, tuple(remarks), changed=True)


def holds(graph: SpmdGraph, node: fx.Node) -> fx.Node | None:
    """The earlier value whose elements ``node`` holds, in order; None if there is none."""
    if node.op != "call_function" or not access.is_tensor(node):
        return None
    operands = access.operands(node)
    if node.target is aten.copy.default:
        return operands[1]
    if node.target in (aten.alias.default, aten.detach.default):
        return operands[0]
    if node.target is WAIT:
        return _waited(graph, node)
    return _viewed(graph, node)


def _waited(graph: SpmdGraph, node: fx.Node) -> fx.Node | None:
    if access.operands(node)[0].target is WAIT:
        return access.operands(node)[0]
    first = min(user for user in access.operands(node)[0].users if user.target is WAIT)
    if first is not node:
        return first
    waited = collective(node)
    if waited is None or graph.mesh.group(waited.group).axis_size != 1:
        return None
    return waited.operand


def _viewed(graph: SpmdGraph, node: fx.Node) -> fx.Node | None:
    """The value that a chain of views ending in ``node`` comes back to."""
    at, shape = node, access.shape(node)
    while True:
        rule = graph.meanings.get(at)
        if rule is None or rule.terms is None or [t.map for t in rule.terms] != [RESHAPE]:
            return None
        at = access.operands(at)[rule.terms[0].operands[0]]
        if not access.is_tensor(at):
            return None
        if tuple(map(size_key, access.shape(at))) == tuple(map(size_key, shape)):
            return at
