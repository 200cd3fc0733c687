"""SPMD graphs made by hand: op by op on the meta device, or from text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import fx, nn

from compiler.check.simulate import PerRank, draw_inputs, simulate
from compiler.ir import access
from compiler.ir.collectives import WAIT
from compiler.ir.graph import SpmdGraph, spmd_graph
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Placement, Replicate, Varying
from compiler.ir.text import parse_graph

aten, c10d = torch.ops.aten, torch.ops._c10d_functional

Inputs = dict[str, dict[str, Placement]]


class Builder:
    """Builds one graph; every value's meta["val"] is a meta tensor.

    Args:
        mesh: the mesh of the graph.
        parameters: attribute name -> tensor, for ``attribute``.
        mode: makes the context in which ops run on symbolic sizes, where there are any.
    """

    def __init__(
        self,
        mesh: Mesh,
        parameters: Mapping[str, torch.Tensor] | None = None,
        *,
        mode: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.mesh, self.graph, self.root = mesh, fx.Graph(), nn.Module()
        self.mode = mode
        self.inputs: Inputs = {}
        for name, held in (parameters or {}).items():
            self.root.register_buffer(name, held)

    def _placed(self, name: str, varies: Sequence[str]) -> None:
        self.inputs[name] = {
            axis: Varying() if axis in varies else Replicate() for axis in self.mesh.axes
        }

    def input(
        self,
        name: str,
        *shape: int | torch.SymInt,
        varies: Sequence[str] = (),
        dtype: torch.dtype = torch.float64,
    ) -> fx.Node:
        """A placeholder that differs between the ranks of the axes ``varies``."""
        self._placed(name, varies)
        node = self.graph.placeholder(name)
        with self.mode():
            node.meta["val"] = torch.empty(shape, dtype=dtype, device="meta")
        return node

    def attribute(self, name: str, varies: Sequence[str] = ()) -> fx.Node:
        self._placed(name, varies)
        node = self.graph.create_node("get_attr", name)
        node.meta["val"] = self.root.get_buffer(name).to("meta")
        return node

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """One op; it must have a meta kernel."""
        read = fx.node.map_arg((args, kwargs), lambda n: n.meta["val"])
        node = self.graph.call_function(target, args, kwargs)
        with self.mode():
            node.meta["val"] = target(*read[0], **read[1])
        return node

    def _collective(self, target: Any, x: fx.Node, *args: Any, rows: int | torch.SymInt) -> fx.Node:
        shape = (rows, *access.shape(x)[1:])
        started = self.graph.call_function(target, (x, *args))
        waited = self.graph.call_function(WAIT, (started,))
        for node in (started, waited):
            with self.mode():
                node.meta["val"] = torch.empty(shape, dtype=access.dtype(x), device="meta")
        return waited

    def all_reduce(self, x: fx.Node, group: str = "tp", op: str = "sum") -> fx.Node:
        """The reduction, waited for."""
        found = self._collective(c10d.all_reduce.default, x, op, group, rows=1)
        for node in (found, found.prev):
            with self.mode():
                node.meta["val"] = torch.empty_like(access.tensor(x))
        return found

    def reduce_scatter(self, x: fx.Node, group: str = "tp", op: str = "sum") -> fx.Node:
        """Block ``rank`` of dimension 0 of the reduction."""
        size = self.mesh.group(group).axis_size
        rows = int(access.shape(x)[0]) // size
        return self._collective(c10d.reduce_scatter_tensor.default, x, op, size, group, rows=rows)

    def all_gather(self, x: fx.Node, group: str = "tp") -> fx.Node:
        """All ranks' tensors, concatenated along dimension 0."""
        size = self.mesh.group(group).axis_size
        rows = access.shape(x)[0] * size
        return self._collective(c10d.all_gather_into_tensor.default, x, size, group, rows=rows)

    def all_to_all(self, x: fx.Node, group: str = "tp") -> fx.Node:
        """Block i of dimension 0 goes to the i-th rank of the group."""
        size, rows = self.mesh.group(group).axis_size, int(access.shape(x)[0])
        splits = [rows // size] * size
        return self._collective(c10d.all_to_all_single.default, x, splits, splits, group, rows=rows)

    def broadcast(self, x: fx.Node, src: int, group: str = "tp") -> fx.Node:
        """The tensor of the group's rank ``src``."""
        found = self._collective(c10d.broadcast.default, x, src, group, rows=1)
        for node in (found, found.prev):
            node.meta["val"] = access.tensor(x)
        return found

    def finish(self, *returned: fx.Node) -> SpmdGraph:
        """The graph, which returns a tuple."""
        self.graph.output(tuple(returned))
        return spmd_graph(fx.GraphModule(self.root, self.graph), self.mesh, self.inputs)


def inputs_of(graph: SpmdGraph) -> Inputs:
    """What ``optimize_graph(inputs=)`` takes for the same placements."""
    return {n: dict(zip(graph.mesh.axes, p, strict=True)) for n, p in graph.inputs.items()}


def function(inputs: str, *lines: str, mesh: str = "mesh <tp = 4>") -> SpmdGraph:
    """The graph of a function given by its inputs and lines, the last of which returns."""
    body = "\n".join(f"  {line}" for line in lines)
    return parse_graph(f"{mesh}\nfunc @main({inputs}) {{\n{body}\n}}\n")


def outcome(graph: SpmdGraph, seed: int) -> list[PerRank]:
    """The outputs, over the reals, for the inputs of ``seed``."""
    return simulate(graph, draw_inputs(graph, seed), exact=True)


def agree(left: SpmdGraph, right: SpmdGraph, seeds: Sequence[int] = (0, 1)) -> bool:
    """Whether both compute the same for some inputs, up to float64 rounding."""
    for seed in seeds:
        drawn = draw_inputs(left, seed)
        sides = (simulate(graph, drawn, exact=True) for graph in (left, right))
        for a, b in zip(*sides, strict=True):
            for x, y in zip(a, b, strict=True):
                scale = max(1.0, float(x.abs().max()) if x.numel() else 1.0)
                if not torch.allclose(x, y, rtol=1e-9, atol=1e-9 * scale, equal_nan=True):
                    return False
    return True
