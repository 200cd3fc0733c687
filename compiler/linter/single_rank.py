"""What a trace of one rank leaves open: numbers and tensors that code may compute from its rank.

Nothing marks them in the trace. So a call with a number that could be a rank's own is taken as an
op without a rule; tensors that code computes vary, and so do parameters that are taken to be whole
for no other reason than that they meet such values.
Sizes, dimensions and the like have to be the same for the shapes to agree; and nobody computes a
fraction, an epsilon say, from a rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from compiler.ir import access
from compiler.ir.collectives import OPS, WAIT, Kind, collective
from compiler.ir.graph import SpmdGraph
from compiler.ir.placement import Replicate, Varying
from compiler.ir.rules.meaning import DIMS
from compiler.linter.collectives import PIECES

aten = torch.ops.aten
NOT_FROM_RANK = DIMS | {
    *("size", "normalized_shape", "split_size", "split_sizes", "chunks", "sections", "repeats"),
    *("kernel_size", "stride", "padding", "dilation", "groups", "k", "padding_idx"),
    *("exponent", "correction", "scale", "p", "dropout_p"),
}
"""Arguments that state sizes, or that belong to what an op is."""

EQUALIZING = (Kind.ALL_REDUCE, Kind.ALL_GATHER, Kind.BROADCAST)


def unsure_calls(graph: SpmdGraph) -> frozenset[fx.Node]:
    """Calls that may be other ones on other ranks."""
    return frozenset(
        node for node in graph.meanings if any(_own_numbers(node)) or _picks_pieces(node)
    )


def as_far_as_sure(
    graph: SpmdGraph, unsure: Set[fx.Node], computed: Set[str], parameters: Set[str]
) -> SpmdGraph:
    """``graph`` with no more than one rank's trace tells of it.

    Args:
        graph: as traced on one rank.
        unsure: calls that may be other ones on other ranks.
        computed: inputs that are tensors made by the model's code.
        parameters: inputs whose placement the caller did not declare.
    """
    varies, several = set(computed), tuple(Varying() for _ in graph.mesh.axes)
    while more := _met(graph, unsure, varies, parameters) - varies:
        varies |= more
    copied = {node: None if node in unsure else rule for node, rule in graph.meanings.items()}
    inputs = {name: several if name in varies else p for name, p in graph.inputs.items()}
    return replace(graph, inputs=inputs, copied=copied)


def _own_numbers(node: fx.Node) -> Iterator[bool]:
    """Per number given to a call, whether it could be computed from a rank."""
    schema = getattr(node.target, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema is not None else []
    for name, given in (*zip(names, node.args, strict=False), *node.kwargs.items()):
        is_size = name == "end" and node.target is aten.arange.default
        if name not in NOT_FROM_RANK and not is_size:
            for item in given if isinstance(given, list | tuple) else (given,):
                yield _is_whole_number(access.value(item) if isinstance(item, fx.Node) else item)


def _is_whole_number(held: Any) -> bool:
    if isinstance(held, float):
        return held.is_integer()
    return isinstance(held, int | torch.SymInt) and not isinstance(held, bool)


def _picks_pieces(node: fx.Node) -> bool:
    """Whether code uses some pieces of a tensor, which may be the rank's own."""
    if node.target not in PIECES:
        return False
    used = {access.projection(reader) for reader in node.users if reader.users}
    return len(used) < len(access.value(node))


def _met(
    graph: SpmdGraph, unsure: Set[fx.Node], varies: Set[str], parameters: Set[str]
) -> set[str]:
    """Parameters that meet values which depend on what is unsure."""
    tainted: set[fx.Node] = set()
    made_of: dict[fx.Node, frozenset[str]] = {}
    found: set[str] = set()
    for node in graph.graph.nodes:
        name = str(node.target)
        if node.op in ("placeholder", "get_attr"):
            if name in varies:
                tainted.add(node)
            if name in parameters and all(isinstance(p, Replicate) for p in graph.inputs[name]):
                made_of[node] = frozenset({name})
            continue
        read = node.all_input_nodes
        if node in unsure or any(x in tainted for x in read):
            if not _equalizes(node):
                tainted.add(node)
            if node.op == "call_function":
                found |= frozenset().union(*(made_of.get(x, frozenset()) for x in read))
        if read and all(x in made_of for x in read):
            made_of[node] = frozenset().union(*(made_of[x] for x in read))
    return found


def _equalizes(node: fx.Node) -> bool:
    """Whether all ranks get the same from a collective, whatever they give."""
    start = access.operands(node)[0] if node.target is WAIT else node
    what = collective(start) if start.target in OPS else None
    return what is not None and what.kind in EQUALIZING
