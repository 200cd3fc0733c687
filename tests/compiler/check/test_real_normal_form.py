"""What calls are written as is the same function, wherever the calls are defined."""

from __future__ import annotations

import random

import pytest
import torch
from torch import fx

from compiler.check.real_normal_form import is_nonnegative, real_normal_form
from compiler.ir.graph import spmd_graph_of
from compiler.ir.mesh import Mesh
from tests.support.seeds import share

aten = torch.ops.aten
X = torch.tensor([[-3.0, -0.5, 2.0, 0.75], [1.25, -1.0, 4.0, 0.5]], dtype=torch.float64)
W = torch.tensor([0.5, -2.0, 3.0, 1.5], dtype=torch.float64)
ONE = (aten.square, aten.sqrt, aten.rsqrt, aten.reciprocal)
TWO = (aten.mul.Tensor, aten.div.Tensor, aten.add.Tensor)


def drawn(seed: int) -> fx.Graph:
    """Calls on two inputs that are not all defined for negative numbers; the last is returned."""
    chosen, graph = random.Random(seed), fx.Graph()
    values = [graph.placeholder("x"), graph.placeholder("w")]
    for node, held in zip(values, (X, W), strict=True):
        node.meta["val"] = held
    for _ in range(chosen.randrange(2, 7)):
        x, y = chosen.choice(values[-3:]), chosen.choice(values)
        target, args = chosen.choice(
            [
                *((op.default, (x,)) for op in ONE),
                *((op, (x, y)) for op in TWO),
                *((aten.pow.Tensor_Scalar, (x, p)) for p in (1, 2, 4, -1, 0.5, 0.25, -0.5, 1 / 3)),
                *((op, (x, n)) for op in TWO for n in (1, 3.0, -0.5)),
                (aten.mean.dim, (x, [-1], True)),
                (aten.sum.dim_IntList, (x, [-1], True)),
                (aten.linalg_vector_norm.default, (x, chosen.choice((1, 2)), [-1], True)),
            ]
        )
        node = graph.call_function(target, args)
        node.meta["val"] = target(*(a.meta["val"] if isinstance(a, fx.Node) else a for a in args))
        values.append(node)
    graph.output((values[-1],))
    return graph


def rewritten(graph: fx.Graph) -> fx.Graph:
    return real_normal_form(spmd_graph_of(torch.nn.Module(), graph, Mesh({"tp": 1}))).graph


def run(graph: fx.Graph) -> torch.Tensor:
    (found,) = fx.Interpreter(fx.GraphModule({}, graph)).run(X, W)
    return found  # type: ignore[no-any-return]


@pytest.mark.parametrize("first", range(0, 400, 100))
def test_rewritten_calls_compute_the_same(first: int) -> None:
    for seed in range(first, first + share(100)):
        graph = drawn(seed)
        wanted, got = run(graph), run(rewritten(graph))
        defined = wanted.isfinite()
        torch.testing.assert_close(got[defined], wanted[defined], msg=f"seed {seed}")


def test_values_that_show_they_are_not_negative() -> None:
    shown = 0
    for seed in range(share(300)):
        graph = rewritten(drawn(seed))
        values = {n: n for n in graph.nodes if n.op == "call_function" and is_nonnegative(n)}
        shown += len(values)
        graph.output_node().args = ((*values,),)
        held = fx.Interpreter(fx.GraphModule({}, graph)).run(X, W)
        assert not any((x < 0).any() for x in held), seed
    assert shown > share(100)
