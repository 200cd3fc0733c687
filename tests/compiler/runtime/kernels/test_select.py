"""Fused ops run the kernels that tables choose; without a workspace their composition, on gloo."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from compiler.cost import load_machine
from compiler.cost.fused_kernels import FusedKernel
from compiler.ir.row_ops import own_share
from compiler.runtime.kernels import ops, select
from scripts import kernel_reference as reference

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


KERNELS = {
    (FusedKernel.ONE_SHOT, torch.float32): "one_shot_all_reduce_add_rms_norm",
    (FusedKernel.TWO_SHOT, torch.float32): "two_shot_all_reduce_add_rms_norm_whole",
    (FusedKernel.TWO_SHOT, torch.bfloat16): "one_shot_all_reduce_add_rms_norm",
}
"""What the tables say, dtype of the residual -> what runs on a payload of float32."""


@pytest.mark.parametrize(("kernel", "dtype"), KERNELS)
def test_the_kernel_that_the_tables_say(
    kernel: FusedKernel, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = SimpleNamespace(on_current_stream=lambda: ("space",))
    served = SimpleNamespace(workspace=space, kernel=lambda *_: kernel)
    monkeypatch.setattr(select, "serving", lambda *_: served)
    for name in set(KERNELS.values()):
        monkeypatch.setattr(ops, name, lambda *operands, name=name: (name, *operands))
    x, weight = torch.ones(2, 8), torch.ones(8)
    ran, *operands = select.all_reduce_add_rms_norm(x, x.to(dtype), weight, EPS, 1.0, "group")
    assert ran == KERNELS[kernel, dtype]
    assert operands[3:] == [EPS, 1.0, "space"]


def test_the_machine_is_the_one_asked_for_last(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(group: dist.ProcessGroup, *, slot_bytes: int, former: object) -> SimpleNamespace:
        return SimpleNamespace(device_name="NVIDIA H200", slot_bytes=slot_bytes, former=former)

    monkeypatch.setattr(select.Workspace, "rendezvous", made)
    monkeypatch.setattr(select, "_served", {})
    monkeypatch.setattr(dist, "get_backend", lambda group: "cpu:gloo,cuda:nccl")
    group, other = SimpleNamespace(group_name="g"), load_machine("b200x8")
    machines = [None, None, other, None]
    spaces = [
        select.workspace_for(group, size, machine)
        for size, machine in zip((8, 16, 8, 16), machines, strict=True)
    ]
    assert spaces[1].former is spaces[0]
    assert spaces[1] is spaces[2] is spaces[3]
    served = select._served["g"]
    assert (served.workspace, served.machine, served.nccl) == (spaces[1], other, True)
    monkeypatch.setattr(select, "_served", {})
    select.workspace_for(group, 8)
    assert select._served["g"].machine.name == "h200x8"
