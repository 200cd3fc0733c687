"""Collectives are counted as they run, in both namespaces."""

from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol

from compiler.runtime.counting import count_collectives


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
