"""Arguments of the public functions that are none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx, nn

from compiler import (
    CommPlanError,
    Mesh,
    Shard,
    Varying,
    Verdict,
    check_equivalence,
    optimize_allreduce,
)
from compiler.capture.fake_ranks import fake_process_group
from compiler.errors import GraphError, MeshError, PlacementError
from tests.support.graphs import aten, function


def module() -> fx.GraphModule:
    return function(
        '%0 "x": f64[4, 8] {tp: V}',
        "%1: f64[4, 8] = comm.all_reduce(%0) {axis = tp, op = sum}",
        "return %1",
    ).module


@pytest.mark.parametrize(
    ("options", "kind", "what"),
    [
        ({"inputs": {"nowhere": Varying()}}, PlacementError, "inputs= names"),
        ({"inputs": {"x": Shard(9)}}, PlacementError, "dimension it does not have"),
        ({"inputs": {"x": "V"}}, PlacementError, "the placement of 'x' is not a placement"),
        ({"inputs": "x"}, PlacementError, "inputs= must be a mapping"),
        ({"mesh": None}, MeshError, "mesh= must be a Mesh"),
        ({"target": nn.Linear(2, 2)}, GraphError, "not a graph\n  found: Linear"),
    ],
)
def test_wrong_arguments_are_errors_of_check(
    options: dict[str, Any], kind: type[Exception], what: str
) -> None:
    with pytest.raises(kind, match=what):
        check_equivalence(
            **{"source": module(), "target": module(), "mesh": Mesh({"tp": 4})} | options
        )


def test_target_that_the_placements_of_the_source_do_not_fit_is_a_verdict() -> None:
    mesh = Mesh({"tp": 2})
    graphs = [function(f'%0 "x": f64{shape}', "return %0").module for shape in ("[4, 4]", "[4]")]
    report = check_equivalence(*graphs, mesh=mesh, inputs={"x": Shard(1)})
    assert report.verdict is Verdict.INVALID
    assert report.explanation == (
        "placeholder 0 is float64[4, 4] in the source and float64[4] in the target"
    )


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"model": None}, CommPlanError, "not a model\n  found: NoneType\n"
         "  remedy: pass an nn.Module, an fx.GraphModule or an ExportedProgram"),
        ({"model": abs}, CommPlanError, "not a model\n  found: builtin_function_or_method\n"
         "  remedy: pass an nn.Module, an fx.GraphModule or an ExportedProgram"),
        ({"mesh": {"tp": 2}}, MeshError, "mesh= must be a Mesh\n  found: {'tp': 2}\n"
         '  remedy: pass a Mesh, for example Mesh({"tp": 8})'),
    ],
)  # fmt: skip
def test_wrong_arguments_of_optimize_allreduce(
    options: dict[str, Any], kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind) as caught:
        optimize_allreduce(**{"model": nn.Linear(2, 2)} | options)
    assert str(caught.value) == text


def test_group_that_is_none() -> None:
    with fake_process_group(0, 2), pytest.raises(MeshError) as caught:
        optimize_allreduce(nn.Linear(2, 2), group=3)
    assert str(caught.value) == (
        "group= must be a process group of this rank\n"
        "  found: 3\n"
        "  remedy: pass a torch.distributed.ProcessGroup, or None for all ranks"
    )


def test_model_that_is_a_graph_without_output() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_function(aten.neg.default, (x,))
    x.meta["val"] = y.meta["val"] = torch.ones(4, 2)
    with fake_process_group(0, 2), pytest.raises(GraphError) as caught:
        optimize_allreduce(fx.GraphModule(nn.Module(), graph), (torch.ones(4, 2),))
    assert str(caught.value) == (
        "the graph does not end in one output node\n"
        "  found: 0 output nodes among 2 nodes\n"
        "  remedy: end it with graph.output(...)"
    )


@pytest.mark.parametrize("tokens", ["x", None, 1.5])
def test_graph_of_no_number_of_tokens(tokens: Any) -> None:
    with fake_process_group(0, 2):
        optimized = optimize_allreduce(nn.Linear(2, 2), (torch.ones(4, 2),))
    with pytest.raises(CommPlanError) as caught:
        optimized.graph_module(tokens)
    assert str(caught.value) == (
        f"not a number of tokens\n  found: {tokens!r}\n  remedy: pass an integer"
    )


def test_graph_of_a_number_of_tokens() -> None:
    """Tokens are counted where they stand: other sizes, like the width 8 here, are none."""
    with fake_process_group(0, 2):
        optimized = optimize_allreduce(nn.Linear(8, 8), (torch.ones(1, 1, 8),))
        with pytest.raises(CommPlanError, match="no graph is prepared for 8 tokens"):
            optimized.graph_module(8)
        decode = optimized.graph_module(1)
        optimized(torch.ones(1, 5, 8))
    assert [len(optimized.prepared), optimized.graph_module(1) is decode] == [2, True]
    prefill = optimized.graph_module(5)
    assert prefill is not decode
    assert optimized.graph_module(8) is optimized.graph_module(999) is prefill
