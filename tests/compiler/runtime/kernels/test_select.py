"""Fused ops of groups without a workspace run their composition, on gloo ranks."""

from typing import Any

import torch
import torch.distributed as dist

from compiler.ir.row_ops import own_share
from compiler.runtime.kernels import reference

ROWS, HIDDEN, EPS = 8, 16, 3e-5


def composed(group: dist.ProcessGroup) -> list[float]:
    """Largest deviations of both ops, without a workspace, from float64."""
    generator = torch.Generator().manual_seed(group.rank())
    x = torch.randn(ROWS, HIDDEN, generator=generator)
    same = torch.Generator().manual_seed(99)
    residual, weight = (torch.randn(s, generator=same) for s in ((ROWS, HIDDEN), (HIDDEN,)))
    everyone = [torch.empty_like(x) for _ in range(group.size())]
    dist.all_gather(everyone, x, group=group)
    exact = reference.add_rms_norm(reference.sum_over_ranks(everyone), residual, weight, EPS, 1.0)
    rows = ROWS // group.size()
    own = slice(group.rank() * rows, (group.rank() + 1) * rows)
    ops, name = torch.ops.commplan, group.group_name
    y, h = ops.all_reduce_add_rms_norm(x, residual, weight, EPS, 1.0, name)
    gathered, held = ops.reduce_scatter_add_rms_norm_all_gather(
        x, residual[own].contiguous(), weight, EPS, 1.0, group.size(), name
    )
    pairs = [(y, exact[0]), (h, exact[1]), (gathered, exact[0]), (held, exact[1][own])]
    uneven = own_share(residual[:-1], 0, group.size(), group.rank())
    gathered, held = ops.reduce_scatter_add_rms_norm_all_gather(
        x[:-1].contiguous(), uneven, weight, EPS, 1.0, group.size(), name
    )
    kept = rows - (group.rank() == group.size() - 1)
    pairs += [(gathered, exact[0][:-1]), (held[:kept], exact[1][own][:kept])]
    return [float((a.double() - b).abs().max()) for a, b in pairs]


def test_without_a_workspace_ops_run_their_composition(gloo_pool: Any) -> None:
    for differences in gloo_pool(4).run(composed):
        assert max(differences) < 1e-5
