"""Small models on one device and on several ranks, from one description."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import fx

from compiler.check import Report, Verdict
from compiler.check.single_device import Declared, check_single_device
from compiler.ir import access
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import Mesh
from tests.support.graphs import Builder

aten = torch.ops.aten
RANKS = 4

Values = Mapping[str, fx.Node]
Body = Callable[[Builder, Values], fx.Node]
"""Calls of one side, given its inputs."""

Shapes = Mapping[str, Sequence[int]]
INTEGERS = frozenset(("ids",))


def graph(body: Body, shapes: Shapes, ranks: int = 1) -> SpmdGraph:
    """The graph of a body whose inputs have these shapes; ``ids`` are integers."""
    builder = Builder(Mesh({"tp": ranks}))
    inputs = {
        name: builder.input(
            name, *shape, dtype=torch.int64 if name in INTEGERS else torch.float64,
            varies=("tp",) if ranks > 1 and name not in ("x", "ids") else (),
        )
        for name, shape in shapes.items()
    }  # fmt: skip
    return builder.finish(body(builder, inputs))


def shapes_on_ranks(
    shapes: Shapes, cut: Mapping[str, int], ranks: int = RANKS
) -> dict[str, list[int]]:
    """Shapes on each of several ranks; ``cut``: input -> dimension that is sharded."""
    return {
        name: [n // ranks if cut.get(name) == d else n for d, n in enumerate(shape)]
        for name, shape in shapes.items()
    }


def compared(
    single: Body,
    parallel: Body,
    shapes: Shapes,
    cut: Mapping[str, int],
    inputs: Mapping[str, Declared] | None = None,
    ranks: int = RANKS,
) -> Report:
    """The report on two bodies."""
    whole = graph(single, shapes)
    return check_single_device(
        whole, graph(parallel, shapes_on_ranks(shapes, cut, ranks), ranks), inputs
    )


def numbers(*values: int) -> access.RankInt:
    """A number that each rank has for itself."""
    return access.RankInt(values[0], values)


def reduced(b: Builder, x: fx.Node, op: str = "sum") -> fx.Node:
    """The all_reduce of a value."""
    return b.all_reduce(x, op=op)


def columns(b: Builder, x: fx.Node) -> fx.Node:
    """All ranks' columns, side by side: gathered rows, moved."""
    rows, width = map(int, access.shape(x))
    split = b.call(aten.view.default, b.all_gather(x), [RANKS, rows, width])
    moved = b.call(aten.clone.default, b.call(aten.transpose.int, split, 0, 1),
                   memory_format=torch.contiguous_format)  # fmt: skip
    return b.call(aten.view.default, moved, [rows, RANKS * width])


def right(report: Report) -> None:
    """Check that two models were shown to be equal."""
    assert report.verdict is Verdict.EQUIVALENT, report.explanation


def wrong(report: Report) -> None:
    """Check that two models were refuted, by a counterexample."""
    assert report.verdict is Verdict.NOT_EQUIVALENT, f"{report.verdict}: {report.explanation}"
    assert report.counterexample is not None
