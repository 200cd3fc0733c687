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
from tests.graphs import function

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
    calls: dict[str, Callable[..., Any]] = {
        "as it is": result.graph_module,
        "compiled": torch.compile(result.graph_module, backend="aot_eager", dynamic=True),
        "bound": bound,
        "bound, compiled": torch.compile(bound, backend="aot_eager", dynamic=True),
    }
    for name, call in calls.items():
        for rows in (5, 8) if group.size() == 4 else (5,):
            x = torch.linspace(-1, 1, rows * HIDDEN).reshape(rows, HIDDEN)
            with torch.no_grad():
                found[f"{name}, {rows} rows"] = float((call(x) - model(x)).abs().max())
    return found


@pytest.mark.parametrize("size", [2, 4])
def test_shared_rows_run(gloo_pool: Any, size: int) -> None:
    for found in gloo_pool(size).run(differences):
        assert found.pop("verdict") is Verdict.EQUIVALENT
        assert found.pop("ops") == {"commplan.all_slice.default", "commplan.pad_rows.default"}
        assert len(found) == (8 if size == 4 else 4)
        assert max(found.values()) < 1e-5


MESH = 'mesh <dp = 2, tp = 2>\ngroup "both" = <dp, tp>'


def mesh_names(group: dist.ProcessGroup) -> dict[str, Any]:
    graph = function(
        '%0 "x": f64[4] {dp: V, tp: V}',
        "%1: f64[4] = aten.mul.Tensor(%0, rank(1, 10, 100, 1000))",
        "%2: f64[4] = comm.all_reduce(%1) {axis = tp, op = sum}",
        "%3: f64[4] = comm.all_reduce(%1) {axis = dp, op = sum}",
        "return %2, %3",
        mesh=MESH,
    )
    result, rank = optimized(graph), group.rank()
    rows = torch.arange(4).reshape(2, 2)
    own = {}
    for axis, cut in (("tp", rows), ("dp", rows.T)):
        made = [dist.new_group(ranks) for ranks in cut.tolist()]
        own[axis] = next(g for g in made if g is not dist.GroupMember.NON_GROUP_MEMBER)
    x = torch.full((4,), float(rank + 1), dtype=torch.float64)
    found: dict[str, Any] = {"sums": [int(y[0]) for y in result.bind(own, group=group)(x)]}

    def refused(**options: Any) -> str:
        with pytest.raises(MeshError) as caught:
            result.bind(**{"groups": own, "group": group} | options)
        return str(caught.value).replace(repr(own["tp"]), "GROUP")

    found["size"] = refused(group=own["tp"])
    found["ranks"] = refused(groups={**own, "tp": own["dp"]})
    found["none"] = refused(groups={**own, "tp": dist.GroupMember.NON_GROUP_MEMBER})
    found["left out"] = refused(groups={"tp": own["tp"]})
    found["unknown"] = refused(groups={**own, "ep": own["tp"]})
    return found


def test_groups_are_those_of_the_mesh(gloo_pool: Any) -> None:
    terms = [1, 20, 300, 4000]
    for rank, found in enumerate(gloo_pool(4).run(mesh_names)):
        row, column = divmod(rank, 2)
        assert found["sums"] == [
            terms[2 * row] + terms[2 * row + 1],
            terms[column] + terms[column + 2],
        ]
        assert found["size"].splitlines()[:2] == [
            "the process group of group= does not have the ranks that the mesh says",
            f"  found: ranks {[2 * row, 2 * row + 1]} of the job",
        ]
        assert found["ranks"] == (
            "the process group of 'tp' does not have the ranks that the mesh says\n"
            f"  found: ranks {[column, column + 2]} of the job\n"
            f"  remedy: pass the process group of ranks {[2 * row, 2 * row + 1]} of the mesh, "
            f"which are ranks {[2 * row, 2 * row + 1]} of the job"
        )
        assert f"found: {dist.GroupMember.NON_GROUP_MEMBER!r}" in found["none"]
        assert found["left out"] == (
            "group 'dp' has no process group here\n"
            f"  found: it is ranks {[column, column + 2]} of the mesh, and only all ranks of the "
            "job together can make a group\n"
            "  remedy: pass it: bind({'dp': …})"
        )
        assert found["unknown"].startswith("group name 'ep' does not resolve")


def made(group: dist.ProcessGroup) -> tuple[float, str]:
    graph = function(
        '%0 "x": f64[4] {dp: V, tp: V}',
        "%1: f64[4] = comm.all_reduce(%0) {axis = tp, op = sum}",
        "return %1",
        mesh="mesh <dp = 4, tp = 2>",
    )
    result = optimized(graph)
    x = torch.full((4,), float(group.rank()), dtype=torch.float64)
    with pytest.raises(RuntimeError, match="tp") as caught:
        result.graph_module(x)
    return float(result.bind()(x)[0]), str(caught.value)


def test_groups_left_out_are_made_by_all_ranks_of_the_job(gloo_pool: Any) -> None:
    for rank, (found, message) in enumerate(gloo_pool(8).run(made)):
        assert found == 2 * (rank - rank % 2) + 1, message


def test_without_a_process_group_nothing_is_bound() -> None:
    graph = function(
        '%0 "x": f64[4] {tp: V}',
        "%1: f64[4] = comm.all_reduce(%0) {axis = tp, op = sum}",
        "return %1",
    )
    with pytest.raises(MeshError, match="no process group is initialized"):
        optimized(graph).bind()
