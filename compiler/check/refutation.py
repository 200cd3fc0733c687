"""Inputs that refute: on which two graphs, simulated in float64, differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import fx

from compiler.check.expand import expanded
from compiler.check.representatives import Representatives
from compiler.check.simulate import PerRank, draw_inputs, simulate
from compiler.check.verdict import Counterexample
from compiler.errors import CommPlanError
from compiler.ir import access
from compiler.ir.collectives import Kind, collective
from compiler.ir.dispatch import ROWS
from compiler.ir.graph import SpmdGraph
from compiler.ir.row_ops import all_slice

SIMULATION_BYTES = 256 << 20
"""Inputs of all ranks together above which no counterexample is looked for."""

TOLERANCE = 1e-6
"""Relative difference that float64 rounding cannot explain."""

SMALLEST_SCALE = 1e-3
"""Differences are relative to at least this: inputs are of order 1, and where they cancel out, what
is left of the largest intermediate values is rounding."""

SEEDS = 3
"""Draws of inputs on which a counterexample is looked for."""


FEW_RANKS = 64
"""Ranks that are all simulated, with inputs of their own."""

SIMULATED_CALLS = 1 << 17
"""Calls of ops, on all ranks that hold different tensors, above which nothing is simulated."""

DEALING = (Kind.REDUCE_SCATTER, Kind.ALL_TO_ALL)
"""Collectives that give each rank something else."""


def counterexample(
    source: SpmdGraph, target: SpmdGraph, twins: Mapping[str, str], kept: Representatives
) -> Counterexample | None:
    """Return inputs on which an output differs by more than rounding, or None.

    On many ranks only such are drawn of which those of ``kept`` stand for all.

    Args:
        source: what is right.
        target: what is held against it.
        twins: placeholder of the source -> that of the target in its place.
        kept: ranks on which an output differs.

    Raises:
        CommPlanError: the graphs cannot be simulated here.
    """
    alike = kept.on_all() if source.mesh.size <= FEW_RANKS else _alike(source, target, kept)
    calls = len(alike) * (len(source.graph.nodes) + len(target.graph.nodes))
    if len(alike) > FEW_RANKS and calls > SIMULATED_CALLS:
        raise CommPlanError(
            f"Not simulated: {len(alike):,} of {source.mesh.size:,} ranks hold different tensors"
        )
    needed = len(alike) * sum(
        access.payload_bytes(n) for n in source.graph.nodes
        if n.op in ("placeholder", "get_attr") and access.is_tensor(n)
    )  # fmt: skip
    if needed > SIMULATION_BYTES:
        raise CommPlanError(f"Not simulated: the inputs of all ranks take {needed >> 20} MiB")

    def drawn(seed: int) -> tuple[dict[str, PerRank], dict[str, PerRank]]:
        inputs = draw_inputs(source, seed, alike=alike)
        return inputs, inputs | {twin: inputs[name] for name, twin in twins.items()}

    return first_difference(source, target, drawn, lambda output, want: want, alike)


def _alike(source: SpmdGraph, target: SpmdGraph, kept: Representatives) -> Representatives:
    """Return ``kept``, and all ranks of axes along which they cannot hold the same."""
    axes = kept.axes
    everywhere, apart = range(len(axes.sizes)), set[int]()
    for graph, _ in map(expanded, (source, target)):
        for node in graph.graph.nodes:
            communication, own_slice = collective(node), all_slice(node)
            if communication is not None and communication.kind in DEALING:
                groups = graph.mesh.group(communication.group)
                apart.update(axes.spanned(groups) or everywhere)
            if own_slice is not None:
                apart.update(axes.spanned(graph.mesh.group(own_slice.group)) or everywhere)
            if node.target in ROWS:
                apart.update(everywhere)
            for number in access.rank_constants(node):
                apart.update(axes.varying(number.values))
    own = [
        n if i in apart else k for i, (n, k) in enumerate(zip(axes.sizes, kept.kept, strict=True))
    ]
    return Representatives(axes, own)


def first_difference(
    source: SpmdGraph,
    target: SpmdGraph,
    drawn: Callable[[int], tuple[dict[str, PerRank], dict[str, PerRank]]],
    expected: Callable[[int, PerRank], PerRank],
    alike: Representatives | None = None,
) -> Counterexample | None:
    """Return where simulated outputs differ by more than rounding, or None.

    Args:
        source: what is right.
        target: what is held against it.
        drawn: seed -> inputs of both.
        expected: output, its value in the source -> what it must be on the ranks of the target.
        alike: the ranks that are simulated; None: all.

    Raises:
        CommPlanError: the graphs cannot be simulated here.
    """
    skipped = [x | y for x, y in zip(sampled(source), sampled(target), strict=True)]
    if all(skipped):
        raise CommPlanError("Not simulated: every output depends on random numbers")
    for seed in range(SEEDS):
        inputs, twin_inputs = drawn(seed)
        try:
            want = simulate(source, inputs, exact=True, alike=alike)
            got = simulate(target, twin_inputs, exact=True, alike=alike)
        except Exception as error:
            raise CommPlanError(f"Not simulated: {type(error).__name__}: {error}") from error
        for output, (a, b) in enumerate(zip(want, got, strict=True)):
            if skipped[output]:
                continue
            if refutation := difference(seed, output, expected(output, a), b):
                if alike is None or not alike.fewer:
                    return refutation
                return replace(refutation, rank=alike.numbers[refutation.rank], alike=alike.kept)
    return None


def sampled(graph: SpmdGraph) -> list[bool]:
    """Return, per output, whether it depends on random numbers, which differ in every run."""
    drawn: set[fx.Node] = set()
    for node in graph.graph.nodes:
        rule, operands = graph.meanings.get(node), access.operands(node)
        reads = None if rule is None else rule.reads
        read = operands if reads is None else [operands[i] for i in reads]
        if (rule is not None and rule.random) or not drawn.isdisjoint(read):
            drawn.add(node)
    return [node in drawn for node in access.results(access.output(graph.graph))]


def difference(seed: int, output: int, want: PerRank, got: PerRank) -> Counterexample | None:
    """Return where an output differs by more than rounding, per rank; None if it does not."""
    for rank, (a, b) in enumerate(zip(want, got, strict=True)):
        if not isinstance(a, torch.Tensor) or a.numel() == 0:
            continue
        x, y = a.double().flatten(), b.double().flatten()
        gap = (x - y).abs()
        gap[(x == y) | (x.isnan() & y.isnan())] = 0  # infinities too
        at = int(gap.nan_to_num(torch.inf).argmax())
        scale = max(float(x.nan_to_num().abs().max()), SMALLEST_SCALE)
        if not float(gap[at]) <= TOLERANCE * scale:
            near = slice(max(at - 1, 0), at + 2)
            shown = [", ".join(f"{float(e):.6g}" for e in side[near]) for side in (x, y)]
            return Counterexample(seed, output, rank, float(gap[at]) / scale, shown[0], shown[1])
    return None
