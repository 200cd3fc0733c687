"""What a trace of one rank leaves open: numbers and tensors that code may compute from its rank.

Nothing marks them in the trace. So a call with a number that could be a rank's own counts as an op
without a rule; tensors that code computes vary, and so do parameters that count as whole for no
other reason than that they meet such values.
Sizes, dimensions and the like have to be the same for the shapes to agree; and nobody computes a
fraction, an epsilon say, from a rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from compiler.capture import Capture
from compiler.ir import access
from compiler.ir.collectives import Kind, collective
from compiler.ir.graph import SpmdGraph
from compiler.ir.placement import Replicate, Varying
from compiler.ir.rules.meaning import DIMS
from compiler.linter.collectives import PIECES
from compiler.linter.facts import LintFacts

aten = torch.ops.aten
NOT_FROM_RANK = DIMS | {
    *("size", "normalized_shape", "split_size", "split_sizes", "chunks", "sections", "repeats"),
    *("kernel_size", "stride", "padding", "dilation", "groups", "k", "padding_idx"),
    *("exponent", "correction", "scale", "p", "dropout_p"),
}
"""Arguments that state sizes, or that belong to what an op is."""

EQUALIZING = (Kind.ALL_REDUCE, Kind.ALL_GATHER, Kind.BROADCAST)


def facts_of_one_rank(capture: Capture, saved: Set[str], declared: Set[str]) -> LintFacts:
    """Return the facts that hold whatever the model's code computes from the ranks of others.

    Args:
        capture: the model as one rank traced it.
        saved: keys of the tensors that a checkpoint has; code computes the others.
        declared: inputs whose placement the caller declared.
    """
    graph = capture.graph
    unsure = frozenset(n for n in graph.meanings if any(_own_numbers(n)) or _picks_pieces(n))
    parameters = capture.state.keys() - declared
    varies = {name for name in parameters if capture.state[name] not in saved}
    varies |= set(capture.constants) - declared
    while more := _met_by_unsure(graph, unsure, varies, parameters) - varies:
        varies |= more
    rules = {node: None if node in unsure else rule for node, rule in graph.meanings.items()}
    varying = (Varying(),) * len(graph.mesh.axes)
    inputs = {name: varying if name in varies else p for name, p in graph.inputs.items()}
    return LintFacts(replace(graph, inputs=inputs, copied=rules), unsure)


def _own_numbers(node: fx.Node) -> Iterator[bool]:
    """Yield per number in a call whether it could be computed from a rank."""
    schema = getattr(node.target, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema is not None else []
    for name, argument in (*zip(names, node.args, strict=False), *node.kwargs.items()):
        is_size = name == "end" and node.target is aten.arange.default
        if name not in NOT_FROM_RANK and not is_size:
            for item in argument if isinstance(argument, list | tuple) else (argument,):
                yield _is_whole_number(access.value(item) if isinstance(item, fx.Node) else item)


def _is_whole_number(value: Any) -> bool:
    if isinstance(value, float):
        return value.is_integer()
    return isinstance(value, int | torch.SymInt) and not isinstance(value, bool)


def _picks_pieces(node: fx.Node) -> bool:
    """Return whether code uses some pieces of a tensor, which may be the rank's own."""
    if node.target not in PIECES:
        return False
    return len({access.projection(x) for x in node.users if x.users}) < len(access.value(node))


def _met_by_unsure(
    graph: SpmdGraph, unsure: Set[fx.Node], varies: Set[str], parameters: Set[str]
) -> set[str]:
    """Return the parameters that meet values which depend on what is unsure."""
    tainted: set[fx.Node] = set()
    made_of: dict[fx.Node, set[str]] = {}
    met: set[str] = set()
    for node in graph.graph.nodes:
        name, read = str(node.target), node.all_input_nodes
        if node.op in ("placeholder", "get_attr"):
            if name in varies:
                tainted.add(node)
            if name in parameters and all(isinstance(p, Replicate) for p in graph.inputs[name]):
                made_of[node] = {name}
            continue
        parts = [made_of[x] for x in read if x in made_of]
        if node in unsure or not tainted.isdisjoint(read):
            what = collective(node)
            if what is None or what.kind not in EQUALIZING:
                tainted.add(node)
            if node.op == "call_function":
                met.update(*parts)
        if read and len(parts) == len(read):
            made_of[node] = set().union(*parts)
    return met
