"""Random models, sharded at random: what is proved must be so when it runs."""

from __future__ import annotations

import random
from collections import Counter

import torch

from compiler.check.single_device import check_single_device, refute
from compiler.check.single_device.compare import layouts_of
from compiler.check.single_device.layouts import Layout
from compiler.ir import access
from compiler.ir.mesh import Mesh
from tests.support.graphs import Builder

aten = torch.ops.aten
RANKS, ROWS, WIDTH = 2, 4, 4
MODELS = 160

WHOLE = (aten.relu.default, aten.silu.default, aten.neg.default, aten.alias.default)
ALONG = (
    lambda b, x: b.call(aten.softmax.int, x, 1),
    lambda b, x: b.call(aten.sum.dim_IntList, x, [1], True),
    lambda b, x: b.call(aten.mean.dim, x, [1], True),
    lambda b, x: b.call(aten.mean.dim, x, [0], True),
    lambda b, x: b.call(aten.transpose.int, x, 0, 1),
    lambda b, x: b.call(aten.cumsum.default, x, 0),
    lambda b, x: b.call(aten.amax.default, x, [1], True),
    lambda b, x: b.call(aten.div.Tensor, x, 2),
)


class Twins:
    """One model on both sides, of the same random choices; ranks also communicate."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.sides = Builder(Mesh({"tp": 1})), Builder(Mesh({"tp": RANKS}))
        self.values = []
        for name in ("x", "v", "w"):
            dim = self.random.choice((None, 0, 1))
            shape = [ROWS, WIDTH]
            own = [n // RANKS if d == dim else n for d, n in enumerate(shape)]
            single = self.sides[0].input(name, *shape)
            self.values.append((single, self.sides[1].input(name, *own, varies=("tp",))))

    def grow(self):
        """Add one op to both sides, or a collective to one, if its operands allow it."""
        kind = self.random.choice(
            ("whole", "along", "along", "mm", "mm", "add", "mul", "talk", "talk")
        )
        a, b = self.random.choice(self.values[-4:]), self.random.choice(self.values)
        op, along = self.random.choice(WHOLE), self.random.choice(ALONG)
        results = []
        for side, builder in enumerate(self.sides):
            x, y = a[side], b[side]
            try:
                match kind:
                    case "whole":
                        results.append(builder.call(op, x))
                    case "along":
                        results.append(along(builder, x))
                    case "mm":
                        results.append(builder.call(aten.mm.default, x, y))
                    case "add":
                        results.append(builder.call(aten.add.Tensor, x, y))
                    case "mul":
                        results.append(builder.call(aten.mul.Tensor, x, y))
                    case _:
                        results.append(x if side == 0 else self._talk(builder, x))
            except RuntimeError:  # the shapes do not fit, on this side
                last = next(iter(reversed(builder.graph.nodes)))
                if "val" not in last.meta:
                    builder.graph.erase_node(last)
                return
        self.values.append(tuple(results))

    def _talk(self, builder, x):
        match self.random.choice(("sum", "sum", "avg", "gather", "columns", "scatter")):
            case "gather":
                return builder.all_gather(x)
            case "columns":
                moved = builder.call(aten.clone.default, builder.call(aten.transpose.int, x, 0, 1))
                return builder.call(aten.transpose.int, builder.all_gather(moved), 0, 1)
            case "scatter" if access.shape(x)[0] % RANKS == 0:
                return builder.reduce_scatter(x)
            case op:
                return builder.all_reduce(x, op="avg" if op == "avg" else "sum")

    def graphs(self):
        """Both graphs, which return the last values that can correspond."""
        fitting = [(s, p) for s, p in self.values[3:] if _corresponds(s, p)]
        if not fitting:
            return None
        return tuple(b.finish(v) for b, v in zip(self.sides, fitting[-1], strict=True))


def _corresponds(single, parallel):
    whole, part = access.shape(single), access.shape(parallel)
    other = (
        [d for d in range(len(whole)) if whole[d] != part[d]] if len(whole) == len(part) else [0, 0]
    )
    return not other or (len(other) == 1 and whole[other[0]] == RANKS * part[other[0]])


def test_what_is_proved_is_so():
    counts = Counter()
    for seed in range(MODELS):
        twins = Twins(seed)
        for _ in range(twins.random.choice((1, 2, 3, 5))):
            twins.grow()
        graphs = twins.graphs()
        if graphs is None:
            continue
        single, parallel = graphs
        report = check_single_device(single, parallel, simulates=False)
        outputs = [access.results(access.output(g.graph))[0] for g in graphs]
        names = {str(n.target): n for n in single.graph.nodes if n.op == "placeholder"}
        held = layouts_of(single, parallel)
        layouts = {
            n: (names[str(n.target)], held[str(n.target)])
            for n in parallel.graph.nodes if n.op == "placeholder"
        }  # fmt: skip
        wanted = _layout(*outputs)
        found = refute.counterexample(single, parallel, layouts, [(tuple(outputs), wanted)])
        assert not (report.verdict.runs and found), f"seed {seed}: {found}"
        counts[str(report.verdict), found is None] += 1
    assert counts["EQUIVALENT", True] >= MODELS // 8, counts
    assert counts["UNPROVED", False] >= MODELS // 4, counts
    assert counts["UNPROVED", True] <= counts["EQUIVALENT", True], counts


def _layout(single, parallel):
    whole, part = access.shape(single), access.shape(parallel)
    for d, (n, own) in enumerate(zip(whole, part, strict=True)):
        if n != own:
            return Layout(d, tuple(((r * own, own),) for r in range(RANKS)), f"S({d})")
    return Layout()
