"""Inputs that refute: on which two graphs, simulated in float64 on all ranks, differ."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from compiler.check.simulate import PerRank, simulate
from compiler.check.verdict import Counterexample
from compiler.errors import CommPlanError
from compiler.ir import access
from compiler.ir.graph import SpmdGraph

SIMULATION_BYTES = 256 << 20
"""Inputs of all ranks together above which no counterexample is looked for."""

TOLERANCE = 1e-6
"""Relative difference that float64 rounding cannot explain."""

SMALLEST_SCALE = 1e-3
"""Differences are relative to at least this: inputs are of order 1, and where they cancel out, what
is left of the largest intermediate values is rounding."""

SEEDS = 3
"""Draws of inputs on which a counterexample is looked for."""


def first_difference(
    source: SpmdGraph,
    target: SpmdGraph,
    drawn: Callable[[int], tuple[dict[str, PerRank], dict[str, PerRank]]],
    expected: Callable[[int, PerRank], PerRank],
) -> Counterexample | None:
    """Return where simulated outputs differ by more than rounding, or None.

    Args:
        source: what is right.
        target: what is held against it.
        drawn: seed -> inputs of both.
        expected: output, its value in the source -> what it must be on the ranks of the target.

    Raises:
        CommPlanError: the graphs cannot be simulated here.
    """
    skipped = [x | y for x, y in zip(sampled(source), sampled(target), strict=True)]
    if all(skipped):
        raise CommPlanError("Not simulated: every output depends on random numbers")
    for seed in range(SEEDS):
        inputs, twin_inputs = drawn(seed)
        try:
            want = simulate(source, inputs, exact=True)
            got = simulate(target, twin_inputs, exact=True)
        except Exception as error:
            raise CommPlanError(f"Not simulated: {type(error).__name__}: {error}") from error
        for output, (a, b) in enumerate(zip(want, got, strict=True)):
            if skipped[output]:
                continue
            if refutation := difference(seed, output, expected(output, a), b):
                return refutation
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
            return Counterexample(seed, output, rank, float(gap[at]) / scale, *shown)
    return None
