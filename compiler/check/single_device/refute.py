"""Inputs on which a parallel model differs from the model on one device, by simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from compiler.check.refutation import SEEDS, SIMULATION_BYTES, first_difference
from compiler.check.simulate import PerRank, draw_inputs
from compiler.check.single_device.cases import LOOKUPS
from compiler.check.single_device.layouts import Layout
from compiler.check.verdict import Counterexample
from compiler.errors import CommPlanError
from compiler.ir import access
from compiler.ir.graph import SpmdGraph

__all__ = ["SEEDS", "counterexample"]

Layouts = Mapping[fx.Node, tuple[fx.Node, Layout]]


def counterexample(
    single: SpmdGraph,
    parallel: SpmdGraph,
    layouts: Layouts,
    outputs: Sequence[tuple[tuple[fx.Node, fx.Node], Layout]],
    tensors: Sequence[Mapping[fx.Node, torch.Tensor]] = ({}, {}),
) -> Counterexample | None:
    """Return inputs on which an output differs by more than rounding, or None.

    Args:
        single: the model on one device.
        parallel: the model as each rank has it.
        layouts: input of ``parallel`` -> input of ``single``, and what ranks hold of it.
        outputs: pairs of outputs, and what ranks hold of them.
        tensors: of both, inputs whose values are there.

    Raises:
        CommPlanError: the graphs cannot be simulated here.
    """
    inputs = [n for n in single.graph.nodes if n.op in ("placeholder", "get_attr")]
    needed = sum(access.payload_bytes(n) for n in inputs if access.is_tensor(n))
    if needed > SIMULATION_BYTES:
        raise CommPlanError(f"Not simulated: the inputs take {needed >> 20} MiB")

    def drawn(seed: int) -> tuple[dict[str, PerRank], dict[str, PerRank]]:
        inputs = draw_inputs(single, seed) | _indices(single, seed)
        on_ranks = draw_inputs(parallel, seed)
        for node, (twin, own) in layouts.items():
            (whole,) = inputs[str(twin.target)]
            on_ranks[str(node.target)] = shards_of(whole, own, parallel.mesh.size)
        for graph, there, values in zip(
            (single, parallel), tensors, (inputs, on_ranks), strict=True
        ):
            values |= {str(n.target): [x] * graph.mesh.size for n, x in there.items()}
        return inputs, on_ranks

    def expected(output: int, want: PerRank) -> PerRank:
        return shards_of(want[0], outputs[output][1], parallel.mesh.size)

    return first_difference(single, parallel, drawn, expected)


def shards_of(whole: Any, own: Layout, ranks: int) -> PerRank:
    """Return what each rank holds of a tensor."""
    parts = [whole] * ranks
    for dim, segments in own.cuts.items():
        parts = [
            torch.cat([x.narrow(dim, start, length) for start, length in ranges], dim)
            for x, ranges in zip(parts, segments, strict=True)
        ]
    return parts


def _indices(graph: SpmdGraph, seed: int) -> dict[str, PerRank]:
    """Return integers for the inputs by which tables are read: all of their rows may occur."""
    drawn: dict[str, PerRank] = {}
    for node in graph.graph.nodes:
        if node.target not in LOOKUPS:
            continue
        table, ids = access.operands(node)[:2]
        if ids.op == "placeholder" and access.dtype(ids) is torch.int64:
            rows, shape = access.concrete(access.shape(table)[0]), access.concrete_shape(ids)
            generator = torch.Generator().manual_seed(seed)
            drawn[str(ids.target)] = [torch.randint(rows, shape, generator=generator)]
    return drawn
