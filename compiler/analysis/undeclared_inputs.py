"""Graphs that do not say which of their inputs differ between ranks.

A placeholder that nothing is declared of counts as the same on all ranks. Where that leaves no
difference for a collective to make up for, sharded weights are most likely among them: what is
proved of the graph then holds for inputs that it never gets.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from compiler.analysis.replication import classes_of, replicated_over
from compiler.errors import UndeclaredInputs
from compiler.ir import access
from compiler.ir.collectives import Collective, collectives
from compiler.ir.declared_inputs import Inputs, named
from compiler.ir.graph import SpmdGraph, input_names
from compiler.ir.row_ops import all_slice


def undeclared(graph: SpmdGraph, inputs: Inputs | None = None) -> UndeclaredInputs | None:
    """The warning that no input differs between the ranks of some collective; None if all do.

    Ranks may also differ by slices and numbers of their own, where the graph has any; and a caller
    who declares every input has said so.

    Args:
        graph: the graph, its inputs placed.
        inputs: what the caller declared.
    """
    alike = list(_among_equals(graph))
    own = any(rule is not None and rule.rank_dependent for rule in graph.meanings.values())
    if not alike or own or any(map(all_slice, graph.graph.nodes)):
        return None
    names = input_names(graph.graph)
    if set(graph.inputs) <= {name for text in inputs or {} for name in named(text, names)}:
        return None
    (start, first), more = alike[0], len(alike) - 1
    near = list(_inputs_of(first.operand))[:2] or ["x"]
    axes = list(graph.mesh.axes)
    axis = (graph.mesh.axes_of(first.group) or axes)[0] if len(axes) > 1 else ""
    cut, option = (f'{{"{axis}": Shard(0)}}', f"{axis}:S(0)") if axis else ("Shard(0)", "S(0)")
    example = ", ".join(f'"{name}": {cut}' for name in near)
    return UndeclaredInputs(
        "no input differs between the ranks of a collective, by what is declared: if weights are "
        "sharded, every verdict and finding is about another graph",
        where=f"{first.kind} %{(first.result or start).name} over {first.group!r}"
        + (f" and {more} more" if more else "")
        + (f", {line}" if (line := access.source_line(start)) else ""),
        found=f"along it all {len(graph.inputs)} inputs are Replicate, as is every placeholder "
        "that inputs= leaves out",
        remedy=f"declare what is cut, for example inputs={{{example}}} (--input {near[0]}={option})"
        ', or Varying() where ranks hold values of their own; if all are the same, {"*": '
        "Replicate()}",
    )


def _among_equals(graph: SpmdGraph) -> Iterator[tuple[fx.Node, Collective]]:
    """Collectives over ranks that hold every input alike, with the nodes that start them."""
    inputs = [classes_of(graph.mesh, placed) for placed in set(graph.inputs.values())]
    for node, communication in collectives(graph.graph):
        groups = graph.mesh.group(communication.group)
        if groups.axis_size > 1 and all(replicated_over(classes, groups) for classes in inputs):
            yield node, communication


def _inputs_of(start: fx.Node) -> Iterator[str]:
    """Names of the inputs that ``start`` is computed from, the nearest first.

    Of one call's, the last first: there weights stand.
    """
    queue, reached = [start], {start}
    for node in queue:  # grows meanwhile
        if node.op in ("placeholder", "get_attr"):
            yield str(node.target)
        following = [n for n in reversed(node.all_input_nodes) if n not in reached]
        queue += following
        reached.update(following)
