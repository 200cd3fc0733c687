"""Ops write in place only where nobody else reads the memory."""

from typing import Any

import pytest
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from compiler.runtime.in_place import reduce_in_place, update_inputs

aten, c10d = torch.ops.aten, torch.ops._c10d_functional


def traced(body: Any) -> fx.Graph:
    """A graph of x [4, 4] and y [4, 4], written through ``emit(target, *args)``."""
    graph = fx.Graph()
    with FakeTensorMode():
        inputs = [graph.placeholder(name) for name in ("x", "y")]
        for node in inputs:
            node.meta["val"] = torch.empty(4, 4)

        def emit(target: Any, *args: Any) -> fx.Node:
            node = graph.call_function(target, args)
            node.meta["val"] = target(*fx.node.map_arg(args, lambda n: n.meta["val"]))
            return node

        graph.output(tuple(body(emit, *inputs)))
    return graph


def reduced(emit: Any, operand: fx.Node) -> fx.Node:
    started = emit(c10d.all_reduce.default, operand, "sum", "tp")
    wait: fx.Node = emit(c10d.wait_tensor.default, started)
    return wait


@pytest.mark.parametrize(
    ("count", "body"),
    [
        (1, lambda e, x, y: [reduced(e, e(aten.mm.default, x, y))]),
        (1, lambda e, x, y: [reduced(e, e(aten.linear.default, x, y))]),
        (0, lambda e, x, y: [reduced(e, x)]),
        (0, lambda e, x, y: [reduced(e, a := e(aten.mm.default, x, y)), a]),
        (0, lambda e, x, y: [reduced(e, e(aten.view.default, x, [16]))]),
        (0, lambda e, x, y: [reduced(e, e(aten.dropout.default, x, 0.5, False)), x]),
        (0, lambda e, x, y: [reduced(e, e(aten.t.default, e(aten.mm.default, x, y)))]),
    ],
)
def test_all_reduce_in_place(count: int, body: Any) -> None:
    graph = traced(body)
    assert reduce_in_place(graph) == count
    assert [n.target for n in graph.nodes].count(c10d.all_reduce_.default) == count


def put(emit: Any, into: fx.Node, index: fx.Node, values: fx.Node) -> fx.Node:
    found: fx.Node = emit(aten.index_put.default, into, [index], values)
    return found


def row(emit: Any) -> fx.Node:
    found: fx.Node = emit(aten.arange.default, 4)
    return found


@pytest.mark.parametrize(
    ("names", "body"),
    [
        ({0}, lambda e, x, y: [put(e, x, row(e), y)]),
        (set(), lambda e, x, y: [put(e, x, row(e), y), e(aten.exp.default, x)]),
        (set(), lambda e, x, y: [put(e, x, row(e), x)]),
        (set(), lambda e, x, y: [put(e, y, row(e), x)]),
        (set(), lambda e, x, y: [e(aten.exp.default, x)]),
    ],
)
def test_updates_of_inputs(names: set[int], body: Any) -> None:
    graph = traced(body)
    assert update_inputs(graph, {0: "x"}) == names
    assert [n.target for n in graph.nodes].count(aten.index_put_.default) == len(names)
