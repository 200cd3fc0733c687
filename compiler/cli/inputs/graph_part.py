"""Extract a part of a graph: it prints, parses and can be optimized by itself."""

from __future__ import annotations

from collections.abc import Set

from torch import fx

from compiler.analysis.layers import layer_of
from compiler.analysis.replication import replicated_over, replication
from compiler.errors import CommPlanError
from compiler.ir import access
from compiler.ir.collectives import OPS, WAIT
from compiler.ir.graph import SpmdGraph
from compiler.ir.graph_copy import GraphCopy
from compiler.ir.placement import Placements, Replicate, Varying
from passes import Canonicalize


def of_layers(graph: SpmdGraph, selected: range) -> SpmdGraph:
    """Return the part of ``graph`` that computes the layers ``selected``.

    Raises:
        CommPlanError: the graph has none of them.
    """
    layers: dict[fx.Node, int | None] = {}
    for node in graph.graph.nodes:
        layers[node] = layer_of(node)
        if layers[node] is None and (node.target is WAIT or access.projection(node) is not None):
            layers[node] = layers[access.operands(node)[0]]
    calls = {n for n, layer in layers.items() if n.op == "call_function" and layer in selected}
    if not calls:
        numbers = sorted({layer for layer in layers.values() if layer is not None})
        raise CommPlanError(
            "the graph has no such layers",
            where=f"--layers {selected.start}-{selected.stop - 1}",
            found=f"layers {numbers[0]} to {numbers[-1]}"
            if numbers
            else "no layers: the text does not name modules; commplan capture keeps that",
            remedy="name layers of the graph, or leave --layers out",
        )
    return extract(graph, calls)


def extract(graph: SpmdGraph, calls: Set[fx.Node]) -> SpmdGraph:
    """Return a graph of ``calls``, with inputs for what they read and outputs for what others read.

    Such an input is Replicate along the axes along which the whole graph shows it, else Varying.
    """
    # The copies that functionalized in-place code leaves hide what canonical graphs show.
    canonical = Canonicalize().apply(graph).graph
    classes = {n.name: c for g in (graph, canonical) for n, c in replication(g).items()}
    operands = {x for node in calls for x in node.all_input_nodes} - calls
    copied = calls | {x for x in operands if x.op == "get_attr"}
    copy = GraphCopy()
    target, copies = copy.target, copy.values
    inputs: dict[str, Placements] = {}
    for node in (n for n in graph.graph.nodes if n in operands and n not in copied):
        copies[node] = target.placeholder(node.name)
        copies[node].meta = dict(node.meta)
        alike = [replicated_over(classes[node.name], graph.mesh.along(a)) for a in graph.mesh.axes]
        derived = tuple(Replicate() if same else Varying() for same in alike)
        inputs[node.name] = graph.inputs[node.target] if node.op == "placeholder" else derived
    for node in (n for n in graph.graph.nodes if n in copied):
        copy.add(node)
        if node.op == "get_attr":
            inputs[node.target] = graph.inputs[node.target]
    returned = [
        copies[node]
        for node in graph.graph.nodes
        if node in calls and node.target not in OPS and not node.users.keys() <= calls
    ]
    target.output(tuple(returned))
    return SpmdGraph(graph.root, target, graph.mesh, inputs)
