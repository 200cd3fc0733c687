"""Ranks on streams of one device; scripts/bench_kernels checks more sizes, and times."""

import os

import pytest
import torch

from compiler.errors import KernelError
from compiler.runtime.kernels import select
from scripts import kernel_reference as reference
from scripts.kernel_checks import DTYPES, RUNS, Operands, ranks_for, repeated, worst_deviation

pytestmark = pytest.mark.gpu

# Read when CUDA starts: with fewer queues one rank's kernel waits behind another's.
os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
OPS = torch.ops.commplan


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize(("world_size", "dtype"), [(2, "fp32"), (3, "fp16"), (8, "bf16")])
def test_against_float64(name: str, world_size: int, dtype: str) -> None:
    ranks = ranks_for(world_size, 37 * 1000 * 4)
    for rows in (0, 1, world_size + 1, 37):
        o = Operands(ranks, rows, 1000, DTYPES[dtype], offset=1.0, seed=rows)
        assert worst_deviation(ranks, RUNS[name], o) <= 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "hidden"), [(1, 33), (37, 1000), (5, 16_384)])
def test_addition_and_norm_of_one_rank(dtype: str, rows: int, hidden: int) -> None:
    o = Operands(ranks_for(1, 1024), rows, hidden, DTYPES[dtype], offset=1.0)
    found = select.add_norm(o.xs[0], o.residual, o.weight, 1e-5, o.offset)
    exact = reference.add_rms_norm(o.xs[0], o.residual, o.weight, 1e-5, o.offset)
    assert max(map(reference.deviation, found, exact)) <= 1


def test_operands_off_their_alignment() -> None:
    """Triton compiles for them; later calls on aligned ones must not run what it compiled."""
    x, residual = torch.randn(2, 8 * 64 + 4, device="cuda").bfloat16()
    weight = torch.randn(64, device="cuda").bfloat16()
    for first in (0, 1, 0, 1):
        parts = [one[first : first + 8 * 64].view(8, 64) for one in (x, residual)]
        found = select.add_norm(*parts, weight, 1e-5, 0.0)
        exact = reference.add_rms_norm(*parts, weight, 1e-5, 0.0)
        assert max(map(reference.deviation, found, exact)) <= 1
        space = ranks_for(1, 4096).workspaces[0]
        assert torch.equal(OPS.two_shot_all_reduce(parts[0], *space.arguments), parts[0])


def test_calls_and_replays_stay_right() -> None:
    assert repeated(ranks_for(4, 64 * 1024 * 2, spin_limit=10**6), launches=200, seed=0) == 0


def test_a_missing_rank_is_reported() -> None:
    ranks = ranks_for(2, 4096, spin_limit=1000)
    o = Operands(ranks, 4, 64, torch.bfloat16, 0.0)
    ranks.warm(lambda rank: RUNS["two-shot norm"](o, rank))
    RUNS["two-shot norm"](o, 0)
    ranks.workspaces[1].check()
    with pytest.raises(KernelError, match="rank 0 waited in vain for rank 1"):
        ranks.workspaces[0].check()


class Normed(torch.nn.Module):
    """A matrix product, and the fused norm of one rank."""

    def __init__(self) -> None:
        super().__init__()
        self.ranks = ranks_for(1, 64 * 256 * 2)
        state, buffers, signals, *self.rest = self.ranks.workspaces[0].arguments
        self.register_buffer("state", state)
        self.register_buffer("buffers_of_ranks", buffers)
        self.register_buffer("signals_of_ranks", signals)
        self.register_buffer("weight", torch.randn(256, device="cuda").bfloat16())
        self.register_buffer("matrix", torch.randn(256, 256, device="cuda").bfloat16() / 16)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        shared = (self.state, self.buffers_of_ranks, self.signals_of_ranks, *self.rest)
        norm = (self.weight, 1e-6, 1.0, *shared)
        y, residual = OPS.one_shot_all_reduce_add_rms_norm(x @ self.matrix, x, *norm)
        return OPS.two_shot_all_reduce_add_rms_norm(y @ self.matrix, residual, *norm)


# With reduce-overhead torch first captures a graph of nothing, and warns about it.
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled(mode: str) -> None:
    model = Normed()
    compiled = torch.compile(model, fullgraph=True, mode=mode)
    for call in range(5):
        x = torch.randn(64, 256, device="cuda").bfloat16()
        exact = model(x)
        y, residual = (tensor.clone() for tensor in compiled(x))
        assert reference.deviation(y, exact[0].double()) <= 4
        assert reference.deviation(residual, exact[1].double()) <= 4
        *progress, fault = model.state.tolist()
        assert set(progress) == {2 * 4 * (call + 1)}, "two ops, each in both models"
        assert fault == 0
