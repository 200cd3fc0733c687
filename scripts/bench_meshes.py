"""Shows how long plan and proof take on 8 to 4,096 ranks, with axes that do different things.

Layers have a norm, two branches sharded over tp and, where there is an axis ep, experts summed over
it. Graphs are made by hand: nothing is captured, and nothing runs. A mistake in the last layer must
be refuted, or at least not proved.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import fx

from compiler.check import check
from compiler.garbage import collection_paused
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import Mesh
from compiler.optimize.optimizer import optimize
from compiler.plan.planner import Planner
from compiler.plan.planner_options import PlannerOptions
from tests.support.graphs import Builder, aten

WIDTH = 4


def _cube(ranks: int) -> dict[str, int]:
    """Return three axes, as equal as powers of two are, that multiply to ``ranks``."""
    bits = ranks.bit_length() - 1
    tp, ep = (1 << (bits + extra) // 3 for extra in (2, 1))
    return {"dp": ranks // tp // ep, "tp": tp, "ep": ep}


MESHES: dict[str, Callable[[int], dict[str, int]]] = {
    "tp": lambda ranks: {"tp": ranks},
    "dp x tp": lambda ranks: {"dp": ranks // 8, "tp": 8},
    "dp x tp x ep": _cube,
    "tp, rows shared": lambda ranks: {"tp": ranks},
}


class Layers(Builder):
    """Builds layers on a mesh.

    Args:
        mesh: the ranks; axis ``tp`` shards branches, ``ep`` experts, ``dp`` tokens.
        rows: the ranks of tp share rows between layers.
    """

    def __init__(self, mesh: Mesh, *, rows: bool) -> None:
        super().__init__(mesh)
        self.rows = rows
        self.own = tuple(axis for axis in mesh.axes if axis == "dp")

    def norm(self, x: fx.Node) -> fx.Node:
        """Divide by the root mean square."""
        square = self.call(aten.mean.dim, self.call(aten.mul.Tensor, x, x), [-1], True)
        return self.call(aten.mul.Tensor, x, self.call(aten.rsqrt.default, square))

    def branch(self, name: str, x: fx.Node, axis: str) -> fx.Node:
        """Return a partial sum over ``axis``: a gated MLP."""
        gate, up, down = (
            self.input(f"{name}_{part}", WIDTH, WIDTH, varies=(axis,))
            for part in ("gate", "up", "down")
        )
        inner = self.call(aten.silu.default, self.call(aten.mm.default, x, gate))
        product = self.call(aten.mul.Tensor, inner, self.call(aten.mm.default, x, up))
        return self.call(aten.mm.default, product, down)

    def total(self, x: fx.Node, axis: str) -> fx.Node:
        """Add up a partial sum; of rows that ranks share, each rank its own."""
        if self.rows and axis == "tp":
            return self.reduce_scatter(x, axis)
        return self.all_reduce(x, axis)

    def layer(self, name: str, x: fx.Node, scale: float) -> fx.Node:
        """Return ``x`` and the sums of a layer; the last one scaled."""
        whole = self.norm(x)
        if self.rows:
            whole = self.all_gather(whole)
        axes = ["tp", "tp", *(axis for axis in self.mesh.axes if axis == "ep")]
        for i, axis in enumerate(axes):
            part = self.branch(f"{name}_{i}", whole, axis)
            if i == len(axes) - 1 and scale != 1:
                part = self.call(aten.mul.Tensor, part, scale)
            x = self.call(aten.add.Tensor, x, self.total(part, axis))
        return x


def model(axes: dict[str, int], layers: int, *, rows: bool, scale: float = 1) -> SpmdGraph:
    """Return a graph of so many layers, the last sum scaled."""
    build = Layers(Mesh(axes), rows=rows)
    x = build.input("tokens", 2, WIDTH, varies=(*build.own, *(("tp",) if rows else ())))
    for i in range(layers):
        x = build.layer(f"layer{i}", x, scale if i == layers - 1 else 1)
    return build.finish(x)


def measured(name: str, ranks: int, layers: int) -> dict[str, Any]:
    """Return seconds of plan and proof, and the verdicts, for a mesh of so many ranks."""
    axes, rows = MESHES[name](ranks), name.endswith("rows shared")
    source, wrong = (model(axes, layers, rows=rows, scale=scale) for scale in (1, 2))
    times = [time.process_time()]
    planner = Planner(source, PlannerOptions())
    target = optimize(planner, planner.decide(None), verify=False)
    times.append(time.process_time())
    report = check(source, target.spmd)
    times.append(time.process_time())
    refutation = check(source, wrong)
    times.append(time.process_time())
    assert report.verdict.runs, f"{axes}: {report.explanation}"
    assert not refutation.verdict.runs, f"{axes}: a mistake is proved"
    plan, proof, mistake = (end - start for start, end in itertools.pairwise(times))
    return {
        "mesh": name, "axes": axes, "plan_s": plan, "proof_s": proof, "mistake_s": mistake,
        "before": dict(target.before.counts), "after": dict(target.after.counts),
        "verdict": str(report.verdict), "mistake": str(refutation.verdict),
        "many_ranks": report.many_ranks,
    }  # fmt: skip


def main() -> int:
    """Prints a table on standard error and JSON on standard output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", default="8,64,512,1024,4096", help="powers of two, 8 or more")
    parser.add_argument("--layers", type=int, default=20, help="default: 20")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    counts, console = [int(n) for n in arguments.ranks.split(",")], Console(stderr=True)
    for name in MESHES:  # what is imported and cached once is paid for here
        measured(name, counts[0], 1)
    rows = []
    title = f"processor seconds of plan + proof, {arguments.layers} layers"
    table = Table("mesh", *(f"{n:,}" for n in counts), title=title, title_justify="left")
    for name in MESHES:
        cells = []
        for ranks in counts:
            with console.status(f"{name} on {ranks:,} ranks"), collection_paused():
                rows.append(row := measured(name, ranks, arguments.layers))
            cells.append(f"{row['plan_s']:.2f} + {row['proof_s']:.2f}")
        table.add_row(name, *cells)
    console.print(table)
    print(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
