"""Graphs of optimize_graph run on real ranks: as they are, compiled, and bound to groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from compiler import Mesh, OptimizationResult, Verdict, optimize_graph
from compiler.errors import MeshError
from tests.compiler.optimize.models import HIDDEN, Stack
from tests.compiler.optimize.optimized import optimized
from tests.support.graphs import function

ROWS = torch.export.Dim.DYNAMIC


def shared(group: dist.ProcessGroup) -> tuple[Stack, OptimizationResult]:
    """A model whose second layer works on shares of rows, padded where they are uneven."""
    model, x = Stack(group), torch.ones(5, HIDDEN)
    shapes = ({0: ROWS},) if group.size() == 4 else None
    program = torch.export.export(model, (x,), dynamic_shapes=shapes, strict=False)
    module = program.run_decompositions({}).module()
    mesh = Mesh({"tp": group.size()}, groups={str(group.group_name): "tp"})
    options: dict[str, Any] = {"policy": "boundary", "layers": ["dense", "sparse"]}
    return model, optimize_graph(module, mesh=mesh, **options)


def differences(group: dist.ProcessGroup) -> dict[str, Any]:
    model, result = shared(group)
    ops = {str(node.target) for node in result.graph_module.graph.nodes}
    found: dict[str, Any] = {
        "ops": {op for op in ops if op.startswith("commplan")}, "verdict": result.verdict
    }  # fmt: skip
    bound = result.bind({"tp": group}, group=group)
    symbolic = group.size() == 4
    calls: dict[str, Callable[..., Any]] = {"as it is": result.graph_module, "bound": bound}
    if symbolic:
        for name in tuple(calls):
            compiled = torch.compile(calls[name], backend="aot_eager", dynamic=True)
            calls[f"{name}, compiled"] = compiled
    for name, call in calls.items():
        for rows in (5, 8) if symbolic else (5,):
            x = torch.linspace(-1, 1, rows * HIDDEN).reshape(rows, HIDDEN)
            with torch.no_grad():
                found[f"{name}, {rows} rows"] = float((call(x) - model(x)).abs().max())
    return found


@pytest.mark.parametrize("size", [2, 4])
def test_shared_rows_run(gloo_pool: Any, size: int) -> None:
    for found in gloo_pool(size).run(differences):
        assert found.pop("verdict") is Verdict.EQUIVALENT
        assert found.pop("ops") == {"commplan.all_slice.default", "commplan.pad_rows.default"}
        assert len(found) == (8 if size == 4 else 2)
        assert max(found.values()) < 1e-5


def sums(ranks: int) -> OptimizationResult:
    """The sums over both axes of what each rank weighs by its own number."""
    numbers = ", ".join(map(str, range(ranks)))
    graph = function(
        '%0 "x": f64[4] {dp: V, tp: V}',
        f"%1: f64[4] = aten.mul.Tensor(%0, rank({numbers}))",
        "%2: f64[4] = comm.all_reduce(%1) {axis = tp, op = sum}",
        "%3: f64[4] = comm.all_reduce(%1) {axis = dp, op = sum}",
        "return %2, %3",
        mesh=f"mesh <dp = {ranks // 2}, tp = 2>",
    )
    return optimized(graph)


def in_groups(group: dist.ProcessGroup) -> dict[str, Any]:
    result, rows, own = sums(8), torch.arange(8).reshape(4, 2), {}
    for axis, cut in (("tp", rows), ("dp", rows.T)):
        made = [dist.new_group(ranks) for ranks in cut.tolist()]
        own[axis] = next(g for g in made if g is not dist.GroupMember.NON_GROUP_MEMBER)
    x = torch.ones(4, dtype=torch.float64)
    found: dict[str, Any] = {
        "given": [float(y[0]) for y in result.bind(own)(x)],
        "made": [float(y[0]) for y in result.bind()(x)],
    }

    def refused(**options: Any) -> str:
        with pytest.raises(MeshError) as caught:
            result.bind(**{"groups": own} | options)
        return str(caught.value)

    found["size"] = refused(group=own["tp"])
    found["ranks"] = refused(groups={**own, "tp": own["dp"]})
    found["none"] = refused(groups={**own, "tp": dist.GroupMember.NON_GROUP_MEMBER})
    found["unknown"] = refused(groups={**own, "ep": own["tp"]})
    return found


def test_groups_are_those_of_the_mesh(gloo_pool: Any) -> None:
    for rank, found in enumerate(gloo_pool(8).run(in_groups)):
        pair, column = [rank - rank % 2, rank - rank % 2 + 1], list(range(rank % 2, 8, 2))
        assert found["given"] == found["made"] == [sum(pair), sum(column)]
        assert found["size"].splitlines()[:2] == [
            "the process group of group= does not have the ranks that the mesh says",
            f"  found: ranks {pair} of the job",
        ]
        assert found["ranks"] == (
            "the process group of 'tp' does not have the ranks that the mesh says\n"
            f"  found: ranks {column} of the job\n"
            f"  remedy: pass the process group of ranks {pair} of the mesh, which are ranks {pair} "
            "of the job"
        )
        assert f"found: {dist.GroupMember.NON_GROUP_MEMBER!r}" in found["none"]
        assert found["unknown"].startswith("group name 'ep' does not resolve")


def alone(group: dist.ProcessGroup) -> tuple[str, str]:
    result = sums(4)
    with pytest.raises(MeshError) as caught:
        result.bind(group=group)
    with pytest.raises(RuntimeError) as unbound:
        result.graph_module(torch.ones(4, dtype=torch.float64))
    return str(caught.value), str(unbound.value)


def test_fewer_ranks_than_those_of_the_job_make_no_groups(gloo_pool: Any) -> None:
    for rank, (bound, unbound) in enumerate(gloo_pool(4).run(alone)):
        assert bound == (
            "group 'tp' has no process group here\n"
            f"  found: it is ranks {[rank - rank % 2, rank - rank % 2 + 1]} of the mesh, and only "
            "all ranks of the job together can make a group\n"
            "  remedy: pass it: bind({'tp': …})"
        )
        assert "tp" in unbound


def test_without_a_process_group_nothing_is_bound() -> None:
    graph = function(
        '%0 "x": f64[4] {tp: V}',
        "%1: f64[4] = comm.all_reduce(%0) {axis = tp, op = sum}",
        "return %1",
    )
    with pytest.raises(MeshError, match="no process group is initialized"):
        optimized(graph).bind()
