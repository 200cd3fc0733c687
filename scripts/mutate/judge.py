"""Simulates a source and what stands in its place, in float64, and compares with the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from unittest import mock

import torch

from compiler.check import Report, Verdict, check
from compiler.check.all_blocks import equal_in_blocks
from compiler.check.equivalence import attribute_names, composed, placed_alike
from compiler.check.simulate import PerRank, draw_inputs, simulate
from compiler.errors import CommPlanError
from compiler.ir import access, row_ops
from compiler.ir.graph import SpmdGraph

TOLERANCE = 1e-7
"""Relative difference that float64 rounding does not explain."""

ROUNDING_TOLERANCE = 1e-4
"""Likewise, of computing in float32."""

SMALLEST_SCALE = 1e-3
"""Differences are relative to at least this; inputs are of order 1."""


class Outcome(StrEnum):
    """What became of a mutant.

    EQUAL: it computes the same; whatever the verdict, nothing wrong was accepted. ACCEPTED: it
    computes something else and would have run. REFUTED: it computes the same, and the checker
    shows a difference. The others: it computes something else or is ill-formed, and the verdict
    says so.
    """

    NOT_EQUIVALENT = "NOT_EQUIVALENT"
    UNPROVED = "UNPROVED"
    INVALID = "INVALID"
    EQUAL = "equal function"
    ACCEPTED = "wrongly accepted"
    REFUTED = "wrongly refuted"


@dataclass(frozen=True)
class Draw:
    """Inputs to simulate with: a seed, an exclusive bound of integers, a number of tokens."""

    seed: int
    bound: int = 2
    tokens: int | None = None


@dataclass(frozen=True)
class Pair:
    """A source and a correct target.

    Attributes:
        name: where it comes from, and with which seed.
        source: the graph as its author wrote it.
        target: the same function.
        bound: integer inputs may be anything below this.
        tokens: further values of symbolic sizes to simulate at, besides their hints.
    """

    name: str
    source: SpmdGraph
    target: SpmdGraph
    bound: int = 2
    tokens: tuple[int, ...] = ()

    @cached_property
    def judge(self) -> Judge:
        """The judge of graphs that stand in for the source."""
        wide = [Draw(seed, self.bound) for seed in (101, 102, 103)]
        more = [Draw(200 + n, self.bound, n) for n in self.tokens]
        return Judge(self.source, (*wide, *more, *(Draw(seed) for seed in range(3))))


class Judge:
    """Compares graphs with one source on several draws of inputs.

    Args:
        source: the source.
        draws: the inputs.
    """

    def __init__(self, source: SpmdGraph, draws: Sequence[Draw]) -> None:
        self.source, self.draws = source, draws
        self._known: dict[tuple[Draw, bool], tuple[dict[str, PerRank], list[PerRank]]] = {}

    def _wanted(self, draw: Draw, *, exact: bool) -> tuple[dict[str, PerRank], list[PerRank]]:
        if (draw, exact) not in self._known:
            inputs = drawn(self.source, draw)
            self._known[draw, exact] = inputs, simulate(self.source, inputs, exact=exact)
        return self._known[draw, exact]

    def difference(self, target: SpmdGraph, *, exact: bool = True) -> str:
        """Where ``target`` computes something else, or that it does not run; empty if nowhere.

        Args:
            target: stands for the source.
            exact: compare over the reals, not in the element types of the graphs.
        """
        tolerance = TOLERANCE if exact else ROUNDING_TOLERANCE
        for draw in self.draws:
            try:
                inputs, want = self._wanted(draw, exact=exact)
            except RuntimeError:
                if draw.tokens is None:
                    raise
                continue  # the source itself does not run at this size
            try:
                with mock.patch.object(row_ops, "padded", poisoned):
                    got = simulate(target, inputs, exact=exact)
            except Exception as error:
                return f"{draw}: does not run: {type(error).__name__}: {error}"
            if len(want) != len(got):
                return f"{len(want)} outputs against {len(got)}"
            for output, (a, b) in enumerate(zip(want, got, strict=True)):
                for rank, (x, y) in enumerate(zip(a, b, strict=True)):
                    if not same(x, y, tolerance):
                        return f"{draw}: output {output} on rank {rank}: {x} against {y}"
        return ""


def poisoned(x: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    """As ``compiler.ir.row_ops.padded``; padding may be anything, and here it is not zero."""
    missing = size - x.shape[dim]
    return torch.cat([x, torch.full_like(row_ops.resized(x, dim, missing), 77)], dim)


def drawn(graph: SpmdGraph, draw: Draw) -> dict[str, PerRank]:
    """Inputs as the checker draws them, integers from a wider range."""
    inputs = draw_inputs(graph, draw.seed, draw.tokens)
    if draw.bound <= 2:
        return inputs
    for node in access.node_of(graph.graph, "placeholder"):
        held = inputs[str(node.target)]
        first = held[0]
        if isinstance(first, torch.Tensor) and first.dtype in (torch.int32, torch.int64):
            generator = torch.Generator().manual_seed(draw.seed)
            wide = torch.randint(0, draw.bound, first.shape, generator=generator).to(first.dtype)
            # One permutation for all ranks keeps equal what must be equal.
            inputs[str(node.target)] = [(x + wide) % draw.bound for x in held]
    return inputs


def same(want: object, got: object, tolerance: float = TOLERANCE) -> bool:
    """Whether two results agree but for rounding."""
    if not (isinstance(want, torch.Tensor) and isinstance(got, torch.Tensor)):
        return type(want) is type(got) and want == got
    if want.shape != got.shape:
        return False
    if not want.numel():
        return True
    x, y = want.double(), got.double()
    scale = max(float(x.nan_to_num(0, 0, 0).abs().max()), SMALLEST_SCALE)
    return torch.allclose(x, y, rtol=0, atol=tolerance * scale, equal_nan=True)


def equal_unrefuted(source: SpmdGraph, target: SpmdGraph) -> bool:
    """Whether the comparison in blocks accepts: ``check`` asks it only if no inputs refute."""
    try:
        target = placed_alike(source, target)
        names = attribute_names(source, target)
        return equal_in_blocks(*composed(source, target), names)
    except CommPlanError:
        return False


def judged(pair: Pair, target: SpmdGraph, *, exact: bool = True) -> tuple[Outcome, Report, str]:
    """What became of ``target``, the checker's report, and the simulated difference.

    Args:
        pair: has the source.
        target: stands for it.
        exact: what counts is the function over the reals, not what rounding makes of it.
    """
    report = check(pair.source, target)
    difference = pair.judge.difference(target, exact=exact)
    if report.verdict is Verdict.INVALID:
        return Outcome.INVALID, report, difference
    if difference and equal_unrefuted(pair.source, target):
        return Outcome.ACCEPTED, report, difference
    if not difference:
        refuted = report.verdict is Verdict.NOT_EQUIVALENT
        return Outcome.REFUTED if refuted else Outcome.EQUAL, report, difference
    if report.verdict.runs:
        return Outcome.ACCEPTED, report, difference
    return Outcome(str(report.verdict)), report, difference
