"""The SPMD graph: one program that every rank runs, with the mesh and the placements of its inputs.

It is data: passes return a new one. The wrapped ``fx.GraphModule`` is functional ATen ops and
functional collectives, runnable at any time, and the same on all ranks.
"""

from __future__ import annotations

import operator
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn
from torch._ops import HigherOrderOperator

from compiler.errors import GraphError, PlacementError
from compiler.ir import access, collectives, schema
from compiler.ir.coalesced import separated
from compiler.ir.declared_inputs import Inputs, by_input
from compiler.ir.dialects.read import Reading, read, readings_of
from compiler.ir.graph_copy import GraphCopy
from compiler.ir.mesh import Mesh, check_mesh
from compiler.ir.placement import (
    Placement,
    Placements,
    Replicate,
    Varying,
    check_inputs,
    placements_on,
)
from compiler.ir.rules import Meaning, meaning


@dataclass(frozen=True, eq=False)
class SpmdGraph:
    """A graph, its mesh, and what each rank holds of its inputs. Equal to itself alone.

    Attributes:
        root: holds the tensors behind the graph's attributes.
        graph: the FX graph; ``meta["val"]`` is set on every node that has a result.
        mesh: the mesh that resolves the graph's group names.
        inputs: placements per axis of every placeholder (by name) and attribute (by target).
        copied: meanings of nodes that are copies of nodes of another graph.
        dispatched: sums over ranks, scattered, for which the plan sends rows to the ranks that
            need them, where the graph is run by ops that can.
        readings: calls of ops of others, in the order in which they were read.
        analyses: results of ``compiler.analysis`` about this graph.
    """

    root: nn.Module
    graph: fx.Graph
    mesh: Mesh
    inputs: Mapping[str, Placements]
    copied: Mapping[fx.Node, Meaning | None] = field(default_factory=dict, repr=False)
    dispatched: frozenset[fx.Node] = frozenset()
    readings: tuple[Reading, ...] = field(default=(), repr=False)
    analyses: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def module(self) -> fx.GraphModule:
        """Return the graph as a module that runs."""
        return fx.GraphModule(self.root, self.graph)

    @cached_property
    def meanings(self) -> Mapping[fx.Node, Meaning | None]:
        """Return the meaning of every call but collectives; None where the op has no rule."""
        return {
            node: self.copied[node] if node in self.copied else meaning(node)
            for node in self.graph.nodes
            if node.op == "call_function"
            and access.is_operand(node)
            and node.target is not collectives.WAIT
            and node.target not in collectives.OPS
        }

    def own_copy(self) -> SpmdGraph:
        """Return the same graph with nodes of its own."""
        copy = GraphCopy()
        copy.add_all(self.graph.nodes)
        return self.with_graph(copy.target, copy.origins)

    def with_graph(
        self, graph: fx.Graph, copies: Mapping[fx.Node, fx.Node], mesh: Mesh | None = None
    ) -> SpmdGraph:
        """Return the same inputs and attributes with another FX graph.

        Args:
            graph: the other graph.
            copies: node of it -> node of this graph that does the same on operands of the same
                types.
            mesh: the same axes with more groups; None: the same mesh.
        """
        meanings = self.meanings
        copied = {copy: meanings[node] for copy, node in copies.items() if node in meanings}
        sent = frozenset(copy for copy, node in copies.items() if node in self.dispatched)
        return replace(self, graph=graph, mesh=mesh or self.mesh, copied=copied, dispatched=sent)


def check_arguments(mesh: object, *modules: object, inputs: object = None) -> None:
    """Raise unless these are a mesh, graph modules, and None or a mapping of placements.

    Raises:
        MeshError, GraphError, PlacementError: respectively.
    """
    check_mesh(mesh)
    for module in modules:
        if not isinstance(module, fx.GraphModule):
            raise GraphError(
                "not a graph",
                found=type(module).__name__,
                remedy="pass an fx.GraphModule: fx.GraphModule(root, graph) of an fx.Graph, "
                ".graph_module of an OptimizationResult; models go to optimize_allreduce",
            )
    check_inputs(inputs)


def spmd_graph(
    module: fx.GraphModule,
    mesh: Mesh,
    inputs: Inputs | None = None,
) -> SpmdGraph:
    """Return ``module`` as an SPMD graph; see ``spmd_graph_of``.

    Raises:
        GraphError, MeshError, PlacementError: also of arguments of other types.
    """
    check_arguments(mesh, module, inputs=inputs)
    return spmd_graph_of(module, module.graph, mesh, inputs)


def spmd_graph_of(
    root: nn.Module, graph: fx.Graph, mesh: Mesh, inputs: Inputs | None = None
) -> SpmdGraph:
    """Return ``graph`` with checked groups and with a placement for every input.

    Args:
        root: holds the tensors behind the graph's attributes. Not changed.
        graph: functional ATen ops and functional collectives, or ops that are declared
            (``compiler.ir.dialects``), which are read as what they do; ``meta["val"]`` set. Not
            changed.
        mesh: resolves every group name in the graph.
        inputs: name of a placeholder, or of an attribute or tensor of the model, or a pattern
            -> placement, or {axis: placement}. Left out, attributes and placeholders for tensors
            of the model (``access.state_key``) are Varying, other placeholders Replicate, and so
            are tensors that the code writes out (``access.is_literal``), like its numbers.

    Raises:
        GraphError: a graph that does not end in an output, or a node that does not fit
            its op's schema.
        MeshError: a group name that does not resolve.
        PlacementError: a name that is not an input, or a placement that does not fit.
    """
    access.output(graph)  # refuses a graph without one
    graph = read(separated(graph), lambda name: mesh.group(name).axis_size, _only(mesh))
    placed: dict[str, Placement | Mapping[str, Placement]] = {}
    for node in graph.nodes:
        if "val" not in node.meta:  # what export leaves without one is better said by its kind
            _check_functional(node)
        schema.check_node(node)
        if node.op == "placeholder":
            _check_is_data(node)
            key = access.state_key(node)
            is_whole = not key or access.is_literal(key)
            placed[str(node.target)] = Replicate() if is_whole else Varying()
        elif node.op == "get_attr":
            is_whole = access.is_literal(str(node.target))
            placed[str(node.target)] = Replicate() if is_whole else Varying()
    placed |= by_input(inputs or {}, input_names(graph), "graph")
    collectives.check_groups(graph, mesh)
    inputs_placed = {
        name: placements_on(mesh, placement, name) for name, placement in placed.items()
    }
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            _check_rank(node, inputs_placed[str(node.target)])
    return SpmdGraph(root, graph, mesh, inputs_placed, readings=readings_of(graph))


def _only(mesh: Mesh) -> str:
    """Return the axis of a mesh of one axis, which collectives without a group go over."""
    return next(iter(mesh.axes)) if len(mesh.axes) == 1 else ""


def input_names(graph: fx.Graph) -> dict[str, str]:
    """Return every name of an input -> its target; a placeholder also has the key of its tensor."""
    nodes = (*access.node_of(graph, "placeholder"), *access.node_of(graph, "get_attr"))
    keys = {key: str(n.target) for n in nodes if (key := access.state_key(n))}
    return {str(n.target): str(n.target) for n in nodes} | keys


def _check_is_data(node: fx.Node) -> None:
    value = access.value(node)
    if isinstance(value, int | float | complex) and node.users:
        raise GraphError(
            f"input %{node.name} is a number",
            where=next(iter(node.users)).format_node() or "",
            found=f"meta['val'] = {value!r}, which holds for one call",
            remedy="pass a tensor of no dimensions, or write the number where it is used",
        )


def _check_rank(node: fx.Node, placements: Placements) -> None:
    value = access.value(node)
    dims = [p.dim for p in placements if hasattr(p, "dim")]
    if isinstance(value, torch.Tensor) and any(d >= value.dim() for d in dims):
        raise PlacementError(
            f"the placement of {str(node.target)!r} shards a dimension it does not have",
            found=f"dimension {max(dims)} of a tensor of {value.dim()} dimensions",
            remedy="count dimensions from 0",
        )


_IN_PLACE = frozenset(
    getattr(operator, name)
    for name in (
        *("setitem", "delitem", "iadd", "iand", "iconcat", "ifloordiv", "ilshift", "imatmul"),
        *("imod", "imul", "ior", "ipow", "irshift", "isub", "itruediv", "ixor"),
    )
)
"""Python's own mutating functions; ops say by their schema whether they mutate."""


def _name(target: object) -> str:
    return f"operator.{getattr(target, '__name__', '')}" if target in _IN_PLACE else str(target)


def well_formed(graph: fx.Graph) -> None:
    """Raise GraphError unless the graph is functional and every collective is waited for.

    Raises:
        GraphError: an op that mutates its operand, or a value used before its wait.
    """
    for node in graph.nodes:
        _check_functional(node)
        collectives.check_waited_for(node)


def _check_functional(node: fx.Node) -> None:
    """Raise GraphError for what is not a call of an op that leaves its operands alone."""
    if node.op in ("call_module", "call_method") and access.has_result(node):
        raise GraphError(
            f"%{node.name} is a {node.op} node",
            where=access.place(node),
            remedy="capture to ATen ops, for example with torch.export",
        )
    declared = getattr(node.target, "_schema", None)
    if node.target in _IN_PLACE or (declared is not None and declared.is_mutable):
        raise GraphError(
            f"op {_name(node.target)} of value %{node.name} mutates its operand",
            where=access.source_line(node),
            remedy="functionalize: pass the ExportedProgram itself, whose written tensors are "
            "outputs, not its .module()",
        )
    runs = [user for user in node.users if isinstance(user.target, HigherOrderOperator)]
    if node.op == "get_attr" and "val" not in node.meta and runs:
        raise GraphError(
            "the graph takes a branch or runs a loop",
            where=access.place(runs[0]),
            found=f"{runs[0].target} of {node.target}",
            remedy="compute it with tensor ops (torch.where, masked_fill), or decide before the "
            "call",
        )
