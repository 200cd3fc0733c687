"""Collectives start early and are waited for late, in the order in which they were."""

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from compiler.check import Verdict, check
from compiler.ir.graph import SpmdGraph, spmd_graph
from compiler.ir.mesh import Mesh
from passes.schedule_collectives import scheduled

aten, c10d = torch.ops.aten, torch.ops._c10d_functional
MESH = Mesh({"tp": 4})


def graph_of(*lines: tuple[str, object, tuple[object, ...]]) -> SpmdGraph:
    """Inputs x, y of [4, 4]; a name in arguments is the value of that name; returns the last."""
    graph, mode, known = fx.Graph(), FakeTensorMode(), dict[object, fx.Node]()
    with mode:
        for name in ("x", "y"):
            known[name] = graph.placeholder(name)
            known[name].meta["val"] = torch.empty(4, 4)
        for name, target, args in lines:
            node = graph.call_function(target, tuple(known.get(a, a) for a in args))  # type: ignore[arg-type]
            values = fx.node.map_arg(node.args, lambda n: n.meta["val"])
            node.meta["val"] = target(*values)  # type: ignore[operator]
            known[name] = node
    graph.output((known[lines[-1][0]],))
    return spmd_graph(fx.GraphModule(torch.nn.Module(), graph), MESH)


def order(graph: fx.Graph) -> list[str]:
    return [str(n.target).split(".")[-2] for n in graph.nodes if n.op == "call_function"]


REDUCE, WAIT = c10d.all_reduce.default, c10d.wait_tensor.default


def test_work_moves_between_start_and_wait() -> None:
    source = graph_of(
        ("a", aten.silu.default, ("x",)),
        ("b", aten.tanh.default, ("y",)),
        ("s", REDUCE, ("a", "sum", "tp")),
        ("t", WAIT, ("s",)),
        ("c", aten.exp.default, ("b",)),
        ("sum", aten.add.Tensor, ("t", "c")),
    )
    target = scheduled(source.graph)
    assert order(target) == ["silu", "all_reduce", "tanh", "exp", "wait_tensor", "add"]
    assert check(source, source.with_graph(target, {})).verdict is Verdict.EQUIVALENT


def test_collectives_keep_their_order() -> None:
    source = graph_of(
        ("a", aten.silu.default, ("x",)),
        ("s", REDUCE, ("a", "sum", "tp")),
        ("t", WAIT, ("s",)),
        ("u", REDUCE, ("x", "max", "tp")),
        ("v", WAIT, ("u",)),
        ("w", aten.exp.default, ("t",)),
        ("sum", aten.add.Tensor, ("w", "v")),
    )
    target = scheduled(source.graph)
    assert order(target) == [
        *("silu", "all_reduce", "all_reduce", "wait_tensor", "exp", "wait_tensor", "add")
    ]
    started = [n.args[1] for n in target.nodes if n.target is REDUCE]
    assert started == ["sum", "max"]


def test_a_result_that_nobody_reads_is_still_waited_for() -> None:
    source = graph_of(
        ("s", REDUCE, ("x", "sum", "tp")),
        ("t", WAIT, ("s",)),
        ("b", aten.exp.default, ("y",)),
    )
    assert order(scheduled(source.graph)) == ["all_reduce", "exp", "wait_tensor"]
