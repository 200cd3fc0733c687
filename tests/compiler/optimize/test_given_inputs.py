"""optimize_allreduce told what ranks hold: data parallelism, rows cut outside the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import _functional_collectives as funcol

from compiler import CommPlanError, Mesh, Shard, Varying, optimize_allreduce
from tests.compiler.optimize.models import HIDDEN, Stack


class DataParallel(nn.Module):
    """Every data-parallel rank has tokens of its own; a statistic is summed over them."""

    def __init__(self, tensor: dist.ProcessGroup, data: dist.ProcessGroup) -> None:
        super().__init__()
        self.stack, self.data = Stack(tensor), data

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.stack(x)
        return y, funcol.all_reduce(y.abs().mean(0), "sum", self.data)


class CutRows(nn.Module):
    """Tokens come cut over the ranks, and are cut again after each layer."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.group = group
        self.weights = nn.ParameterList(
            nn.Parameter(torch.full((HIDDEN, HIDDEN), 0.01 * (i + group.rank())), False)
            for i in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = funcol.all_gather_tensor(x, 0, self.group)
        for weight in self.weights:
            x = x + funcol.reduce_scatter_tensor(h @ weight, "sum", 0, self.group)
        return x


def refused(call: Any) -> str:
    try:
        call()
    except CommPlanError as error:
        return f"{type(error).__name__}: {error.what}; {error.found}"
    return "nothing was refused"


def data_parallel(group: dist.ProcessGroup) -> dict[str, Any]:
    rank, rows = group.rank(), torch.arange(8).reshape(4, 2)
    tensor, data = ([dist.new_group(g) for g in cut.tolist()] for cut in (rows, rows.T))
    tp, dp = tensor[rank // 2], data[rank % 2]
    model = DataParallel(tp, dp)
    options: dict[str, Any] = {"mesh": Mesh({"dp": 4, "tp": 2}), "group": group}
    varying = {"x": {"dp": Varying()}}
    x = torch.linspace(-1, 1 + rank // 2, 6 * HIDDEN).reshape(6, HIDDEN)
    optimized = optimize_allreduce(model, inputs=varying, debug=True, **options)
    pairs = zip(optimized(x), model(x), strict=True)
    found: dict[str, Any] = {"difference": max(float((a - b).abs().max()) for a, b in pairs)}
    report = optimized.report
    found["sums"] = report.before.all_reduces, report.after.all_reduces, str(report.verdict)
    found["undeclared"] = refused(lambda: optimize_allreduce(model, **options)(x))
    found["tp differs"] = refused(lambda: optimized(x + rank))
    found["no such name"] = refused(
        lambda: optimize_allreduce(model, inputs={"z": Varying()}, **options)(x)
    )
    found["group"] = refused(lambda: optimize_allreduce(model, group=tp)(x)).split("'")[2]
    return found


def test_tokens_that_differ_along_one_axis(gloo_pool: Any) -> None:
    for found in gloo_pool(8).run(data_parallel):
        assert found["difference"] < 1e-5
        assert found["sums"] == (4, 3, "EQUIVALENT")
        assert found["undeclared"].endswith(
            "input 'x' must be the same on all ranks, and is not; "
            "ranks 2, 3, 4, 5, 6, 7 differ from the others"
        )
        assert found["tp differs"].endswith(
            "input 'x' must be the same on all ranks of axis 'tp', and is not; "
            "rank 1 differs from the others"
        )
        assert found["no such name"].startswith("PlacementError: inputs= names ['z']")
        assert found["group"] == (
            " has ranks outside the group that compiles; the model uses it; 2 ranks compile"
        )


def cut_rows(group: dist.ProcessGroup) -> tuple[float, str, int, int]:
    model = CutRows(group)
    optimized = optimize_allreduce(model, inputs={"x": Shard(0)}, group=group)
    x = torch.linspace(-1, 1 + group.rank(), 4 * HIDDEN).reshape(4, HIDDEN)
    difference = float((optimized(x) - model(x)).abs().max())
    report = optimized.report
    counts = len(report.before.collectives), len(report.after.collectives)
    return difference, str(report.verdict), *counts


def test_rows_cut_outside_the_model(gloo_pool: Any) -> None:
    for difference, verdict, before, after in gloo_pool(4).run(cut_rows):
        assert difference < 1e-5
        assert (verdict, before, after) == ("EQUIVALENT", 3, 2)


def different(group: dist.ProcessGroup, policies: list[str], tokens: list[int]) -> str:
    x = torch.ones(tokens[group.rank()], HIDDEN)
    model = Stack(group)
    return refused(
        lambda: optimize_allreduce(model, (x,), policy=policies[group.rank()], group=group)
    )


@pytest.mark.parametrize(
    ("policies", "tokens", "message"),
    [
        (
            ["cost", "off"],
            [4, 5],
            "PlanError: ranks optimize with different options; "
            "policy is 'cost' on rank 0, 'off' on rank 1",
        ),
        (
            ["cost", "cost"],
            [4, 5],
            "PlanError: ranks hold different plans: the sizes they were first called with differ; "
            "x is (4, 16) on rank 0, (5, 16) on rank 1",
        ),
    ],
)
def test_what_differs_between_ranks_is_named(
    gloo_pool: Any, policies: list[str], tokens: list[int], message: str
) -> None:
    assert gloo_pool(2).run(different, policies, tokens) == [message] * 2
