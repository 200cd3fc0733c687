"""SPMD graphs: placements of inputs, meanings, copies, and what is not well-formed."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import fx, nn

from compiler.errors import GraphError, MeshError, PlacementError
from compiler.ir.graph import SpmdGraph, spmd_graph, well_formed
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Replicate, Shard, Varying
from compiler.ir.remark import Remark, RemarkKind
from compiler.ir.text import print_graph
from tests.support.graphs import Builder, aten, function


def sample() -> SpmdGraph:
    build = Builder(Mesh({"dp": 2, "tp": 2}), {"w": torch.ones(4, 4)})
    x, w = build.input("x", 2, 4, dtype=torch.float32), build.attribute("w")
    return build.finish(build.all_reduce(build.call(aten.mm.default, x, w)))


def test_inputs_left_out() -> None:
    graph = sample()
    plain = spmd_graph(graph.module, graph.mesh)
    assert plain.inputs == {"x": (Replicate(),) * 2, "w": (Varying(),) * 2}
    given = spmd_graph(graph.module, graph.mesh, {"x": {"tp": Shard(0)}, "w": Replicate()})
    assert given.inputs == {"x": (Replicate(), Shard(0)), "w": (Replicate(),) * 2}


def test_inputs_that_do_not_fit() -> None:
    graph = sample()
    with pytest.raises(PlacementError) as caught:
        spmd_graph(graph.module, graph.mesh, {"y": Varying()})
    assert str(caught.value) == (
        "inputs= names ['y'], which the graph does not read\n  found: its inputs are ['x', 'w']\n"
        "  remedy: name arguments, placeholders or state_dict keys; * stands for one part of a "
        "dotted name"
    )
    for name in ("x", "w"):
        with pytest.raises(PlacementError, match="dimension 2 of a tensor of 2 dimensions"):
            spmd_graph(graph.module, graph.mesh, {name: {"tp": Shard(2)}})
    with pytest.raises(MeshError, match="group name 'tp' does not resolve"):
        spmd_graph(graph.module, Mesh({"ep": 4}))
    next(n for n in graph.module.graph.nodes if n.op == "get_attr").meta.clear()
    with pytest.raises(GraphError, match=r"value %w has no meta\['val'\]"):
        spmd_graph(graph.module, graph.mesh)


GRAPH = (
    "  remedy: pass an fx.GraphModule: fx.GraphModule(root, graph) of an fx.Graph, "
    ".graph_module of an OptimizationResult; models go to optimize_allreduce"
)


@pytest.mark.parametrize("given", [None, nn.Linear(2, 2), fx.Graph(), [], 0])
def test_what_is_no_graph(given: Any) -> None:
    with pytest.raises(GraphError) as caught:
        spmd_graph(given, Mesh({"tp": 2}))
    assert str(caught.value) == f"not a graph\n  found: {type(given).__name__}\n{GRAPH}"


@pytest.mark.parametrize("given", [None, {"tp": 8}, 8])
def test_what_is_no_mesh(given: Any) -> None:
    with pytest.raises(MeshError) as caught:
        spmd_graph(sample().module, given)
    assert str(caught.value) == (
        f"mesh= must be a Mesh\n  found: {given!r}\n"
        '  remedy: pass a Mesh, for example Mesh({"tp": 8})'
    )


@pytest.mark.parametrize("given", ["w", {"w"}, [("w", Varying())]])
def test_inputs_that_are_no_mapping(given: Any) -> None:
    with pytest.raises(PlacementError) as caught:
        spmd_graph(sample().module, sample().mesh, given)
    assert str(caught.value) == (
        "inputs= must be a mapping of names to placements\n"
        f"  found: {given!r}\n"
        '  remedy: for example inputs={"weight": Shard(0)}'
    )


def test_inputs_named_by_several_kinds_of_things() -> None:
    with pytest.raises(PlacementError, match=r"inputs= names \[0, 'y'\]"):
        spmd_graph(sample().module, sample().mesh, {"y": Varying(), 0: Varying()})  # type: ignore[dict-item]


@pytest.mark.parametrize("inputs", [0, 1])
def test_graph_without_output(inputs: int) -> None:
    build = Builder(Mesh({"tp": 2}))
    if inputs:
        build.all_reduce(build.input("x", 4))
    with pytest.raises(GraphError) as caught:
        spmd_graph(fx.GraphModule(build.root, build.graph), build.mesh)
    assert str(caught.value) == (
        "the graph does not end in one output node\n"
        f"  found: 0 output nodes among {3 * inputs} nodes\n"
        "  remedy: end it with graph.output(...)"
    )


def test_meanings_of_calls_that_are_no_collectives() -> None:
    graph = sample()
    assert [str(n.target) for n in graph.meanings] == ["aten.mm.default"]
    assert all(m is not None and m.terms for m in graph.meanings.values())


def test_copies_have_nodes_of_their_own_and_the_same_meanings() -> None:
    graph = sample()
    copy = graph.own_copy()
    assert print_graph(copy) == print_graph(graph)
    assert not set(copy.graph.nodes) & set(graph.graph.nodes)
    (old,), (made,) = graph.meanings.values(), copy.meanings.values()
    assert made is old
    x = torch.ones(2, 4)
    assert isinstance(copy.module, fx.GraphModule)
    assert copy.root is graph.root
    assert x.shape == next(iter(copy.graph.nodes)).meta["val"].shape


def test_what_is_decided_of_a_value_is_decided_of_its_copy() -> None:
    graph = sample()
    total = graph.graph.output_node().all_input_nodes[0]
    decided = replace(graph, dispatched=frozenset({total}))
    copy = decided.own_copy()
    assert copy.dispatched == frozenset(copy.graph.output_node().all_input_nodes)
    assert not copy.with_graph(copy.graph, {}).dispatched


@pytest.mark.parametrize("target", [aten.neg_.default, operator.setitem, operator.iadd])
def test_mutation_is_not_well_formed(target: object) -> None:
    build = Builder(Mesh({"tp": 2}))
    x = build.input("x", 4)
    more = {operator.setitem: (0, 1.0), operator.iadd: (x,)}.get(target, ())
    node = build.graph.call_function(target, (x, *more))  # type: ignore[arg-type]
    node.meta = {**x.meta, "stack_trace": '  File "/m/model.py", line 5, in forward'}
    graph = build.finish(x)
    with pytest.raises(GraphError) as caught:
        well_formed(graph.graph)
    name = getattr(target, "__name__", "")
    shown = f"operator.{name}" if target is not aten.neg_.default else "aten.neg_.default"
    assert str(caught.value) == (
        f"op {shown} of value %{node.name} mutates its operand\n"
        "  where: model.py:5\n"
        "  remedy: functionalize: pass the ExportedProgram itself, whose written tensors are "
        "outputs, not its .module()"
    )


@pytest.mark.parametrize("last", ["%2: f64[4] = aten.neg(%1)", "%2: f64[4] = aten.neg(%0)"])
def test_use_before_wait_is_not_well_formed(last: str) -> None:
    graph = function(
        '%0 "x": f64[4]',
        "%1: f64[4] = comm.all_reduce_start(%0) {axis = tp, op = sum}",
        last,
        "%3: f64[4] = comm.wait(%1)",
        "return %3, %2" if "%1" in last else "return %1",
    )
    with pytest.raises(GraphError) as caught:
        well_formed(graph.graph)
    user = "v2" if "%1" in last else "output"
    assert str(caught.value) == (
        f"%{user} uses collective %v1 before its wait_tensor\n"
        "  remedy: wait for the collective first"
    )


def test_functional_graphs_are_well_formed() -> None:
    well_formed(sample().graph)


def test_remarks_as_text() -> None:
    assert str(Remark(RemarkKind.NOTE, "", "why")) == "note: why"
    assert str(Remark(RemarkKind.MISSED, "%x", "why")) == "missed: %x: why"
    assert str(Remark(RemarkKind.PASSED, "%x", "why", "layers.0")) == "passed: layers.0 %x: why"


def test_a_number_is_no_input() -> None:
    build = Builder(Mesh({"tp": 2}))
    x = build.input("x", 4)
    number = build.graph.placeholder("scale")
    number.meta["val"] = 2.5
    scaled = build.graph.call_function(aten.mul.Tensor, (x, number))
    scaled.meta["val"] = x.meta["val"]
    with pytest.raises(GraphError) as caught:
        build.finish(scaled)
    assert str(caught.value) == (
        "input %scale is a number\n"
        "  where: %mul_tensor : [num_users=1] = call_function[target=torch.ops.aten.mul.Tensor]"
        "(args = (%x, %scale), kwargs = {})\n"
        "  found: meta['val'] = 2.5, which holds for one call\n"
        "  remedy: pass a tensor of no dimensions, or write the number where it is used"
    )


def test_a_number_that_nobody_reads_stays() -> None:
    build = Builder(Mesh({"tp": 2}))
    x = build.input("x", 4)
    build.graph.placeholder("training").meta["val"] = False
    assert build.finish(x).inputs["training"] == (Replicate(),)


def test_tensors_that_code_writes_out_are_the_same_on_all_ranks() -> None:
    build = Builder(
        Mesh({"tp": 2}), {name: torch.ones(3) for name in ("lifted_tensor_0", "lifted_tensor")}
    )
    literal, weight = build.attribute("lifted_tensor_0"), build.attribute("lifted_tensor")
    build.graph.output((build.call(aten.add.Tensor, literal, weight),))
    graph = spmd_graph(fx.GraphModule(build.root, build.graph), build.mesh)
    assert graph.inputs == {"lifted_tensor_0": (Replicate(),), "lifted_tensor": (Varying(),)}
