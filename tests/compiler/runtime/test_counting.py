"""Collectives are counted as they run, in both namespaces."""

from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol

import compiler.runtime.kernels  # noqa: F401 - its import gives the fused ops their kernels
from compiler.ir.fused_ops import ALL_REDUCE_NORM, SHARED_NORM
from compiler.runtime.counting import FUSED, count_collectives


def counted(group: dist.ProcessGroup) -> Any:
    x = torch.ones(4, 2)
    with count_collectives() as counts:
        dist.all_reduce(x, group=group)
        funcol.wait_tensor(funcol.all_reduce(x, "sum", group))
        gathered = torch.empty(4 * group.size(), 2)
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        gather(gathered, x, group=group)
        x + x
    dist.all_reduce(x, group=group)
    return dict(counts.collectives), dict(counts.payload_bytes)


def test_counts(gloo_pool: Any) -> None:
    for collectives, payload_bytes in gloo_pool(2).run(counted):
        assert collectives == {"all_reduce": 2, "all_gather": 1}
        assert payload_bytes == {"all_reduce": 64, "all_gather": 64}


def counted_fused(group: dist.ProcessGroup) -> Any:
    x, residual, weight = torch.ones(6, 8), torch.ones(6, 8), torch.ones(8)
    name, size = str(group.group_name), group.size()
    with count_collectives() as counts:
        funcol.wait_tensor(funcol.all_reduce(x, "sum", group))
        ALL_REDUCE_NORM(x, residual, weight, 1e-5, 0.0, name)
        SHARED_NORM(x, residual[: 6 // size], weight, 1e-5, 0.0, size, name)
    return dict(counts.collectives), +counts.fused, dict(counts.payload_bytes)


def test_fused_ops_count_as_what_they_stand_for(gloo_pool: Any) -> None:
    for collectives, fused, payload_bytes in gloo_pool(2).run(counted_fused):
        assert collectives == {"all_reduce": 2, "reduce_scatter": 1, "all_gather": 1}
        assert fused == {"all_reduce": 1, "reduce_scatter": 1, "all_gather": 1}
        assert payload_bytes == {"all_reduce": 384, "reduce_scatter": 192, "all_gather": 192}


def test_every_fused_op_is_known() -> None:
    names = {op._schema.name.split("::")[1] for op in (ALL_REDUCE_NORM, SHARED_NORM)}
    assert names == set(FUSED)
