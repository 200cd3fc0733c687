"""Lets ops write into memory that nobody else reads any more.

index_put of an input that its result replaces    writes into the input: else every step of
                                                  decoding would copy the whole cache twice
all_reduce of a value that nobody else reads      reduces it where it is: else every all_reduce
                                                  would copy its payload first
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx
from torch._ops import OpOverload

from compiler.ir import access
from compiler.ir.collectives import c10d

aten = torch.ops.aten
OWN = (
    *(aten.linear.default, aten.matmul.default, aten.einsum.default),
    *(aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar),
)
"""Composite ops that always make a tensor of their own."""


def update_inputs(graph: fx.Graph, mutations: Mapping[int, str]) -> frozenset[int]:
    """Let ``index_put`` write into the input that its result is the new value of.

    The graph then returns the input: compilers handle every other output at every call.

    Args:
        graph: changed in place.
        mutations: graph output -> placeholder whose tensor it is written back to.

    Returns:
        The outputs that need no copying back.
    """
    outputs = list(access.returned(graph))
    inputs = {str(n.target): n for n in access.node_of(graph, "placeholder")}
    in_place = set()
    for index, name in mutations.items():
        node, placeholder = outputs[index], inputs[name]
        if not isinstance(node, fx.Node) or node.target is not aten.index_put.default:
            continue
        written, *others = access.operands(node)
        readers = [n for n in placeholder.users if access.is_operand(n)]
        if written is placeholder and placeholder not in others and readers == [node]:
            node.target = aten.index_put_.default
            outputs[index] = placeholder
            in_place.add(index)
    graph.output_node().args = (tuple(outputs),)
    return frozenset(in_place)


def reduce_in_place(graph: fx.Graph) -> int:
    """Let all_reduces write over operands of which they are the only readers; how many do."""
    count = 0
    for node in graph.nodes:
        if node.target is not c10d.all_reduce.default:
            continue
        (operand,) = access.operands(node)
        if list(operand.users) == [node] and _is_fresh(operand):
            node.target = c10d.all_reduce_.default
            count += 1
    return count


def reduce_out_of_place(graph: fx.Graph) -> None:
    """Undo ``reduce_in_place``."""
    for node in graph.find_nodes(op="call_function", target=c10d.all_reduce_.default):
        node.target = c10d.all_reduce.default


def _is_fresh(node: fx.Node) -> bool:
    """Whether the op made a dense tensor of its own, that shares memory with none of its operands.

    Composite ops may return an operand without saying so.
    """
    if not isinstance(node.target, OpOverload) or not access.tensor(node).is_contiguous():
        return False
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(
        node.target.name(),  # type: ignore[no-untyped-call]
        "CompositeImplicitAutograd",
    )
    if node.target.namespace != "aten" or (composite and node.target not in OWN):
        return False
    return all(result.alias_info is None for result in node.target._schema.returns)
