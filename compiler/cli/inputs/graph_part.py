"""A part of a graph as a graph of its own: it prints, parses and can be optimized by itself."""

from __future__ import annotations

from collections.abc import Set

from torch import fx

from compiler.analysis.layers import layer_index
from compiler.analysis.replication import replicated_over, replication
from compiler.errors import CommPlanError
from compiler.ir import access
from compiler.ir.collectives import OPS, WAIT
from compiler.ir.graph import SpmdGraph
from compiler.ir.graph_copy import GraphCopy
from compiler.ir.placement import Placements, Replicate, Varying
from passes import Canonicalize


def of_layers(graph: SpmdGraph, wanted: range) -> SpmdGraph:
    """The part of ``graph`` that computes the layers ``wanted``.

    Raises:
        CommPlanError: the graph has none of them.
    """
    held: dict[fx.Node, int | None] = {}
    for node in graph.graph.nodes:
        held[node] = layer_index(access.layer_path(node))
        if held[node] is None and (node.target is WAIT or access.projection(node) is not None):
            held[node] = held[access.operands(node)[0]]
    chosen = {n for n in held if n.op == "call_function" and held[n] in wanted}
    if not chosen:
        known = sorted({i for i in held.values() if i is not None})
        raise CommPlanError(
            "the graph has no such layers",
            where=f"--layers {wanted.start}-{wanted.stop - 1}",
            found=f"layers {known[0]} to {known[-1]}"
            if known
            else "no layers: graph files do not name the modules that values come from",
            remedy="name layers of the graph, or leave --layers out",
        )
    return extracted(graph, chosen)


def extracted(graph: SpmdGraph, chosen: Set[fx.Node]) -> SpmdGraph:
    """The calls ``chosen``; what they read of others becomes an input, what others read an output.

    Such an input is Replicate along the axes along which the whole graph shows it, else Varying.
    """
    # The copies that functionalized in-place code leaves hide what canonical graphs show.
    canonical = Canonicalize().apply(graph).graph
    classes = {n.name: held for g in (graph, canonical) for n, held in replication(g).items()}
    copy = GraphCopy()
    target, copies = copy.target, copy.values
    inputs: dict[str, Placements] = {}
    needed = {x for node in chosen for x in node.all_input_nodes} - chosen
    for node in graph.graph.nodes:
        if node in needed and node.op != "get_attr":
            copies[node] = target.placeholder(node.name)
            copies[node].meta = dict(node.meta)
            inputs[node.name] = tuple(
                Replicate()
                if replicated_over(classes[node.name], graph.mesh.along(axis))
                else Varying()
                for axis in graph.mesh.axes
            )
            if node.op == "placeholder":
                inputs[node.name] = graph.inputs[str(node.target)]
        elif node in needed:
            inputs[str(node.target)] = graph.inputs[str(node.target)]
    for node in graph.graph.nodes:
        if node in chosen or (node in needed and node.op == "get_attr"):
            copy.add(node)
    returned = [
        copies[node]
        for node in graph.graph.nodes
        if node in chosen and node.target not in OPS and any(u not in chosen for u in node.users)
    ]
    target.output(tuple(returned))
    return SpmdGraph(graph.root, target, graph.mesh, inputs)
