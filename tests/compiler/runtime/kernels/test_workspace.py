import os
import tempfile
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from compiler.errors import KernelError
from compiler.runtime.kernels import Workspace
from compiler.runtime.kernels.workspace import _symmetric_buffer
from scripts.kernel_checks import RUNS, Operands, deviation

WORLD_SIZE, SLOT_BYTES = 4, 1024


def workspace(placed_bytes: int = 0, **kwargs: Any) -> Workspace:
    total_bytes = Workspace.total_bytes(WORLD_SIZE, SLOT_BYTES, placed_bytes)
    buffer = torch.zeros(total_bytes, dtype=torch.uint8)
    addresses = [buffer.data_ptr() + rank for rank in range(WORLD_SIZE)]
    return Workspace(buffer, addresses, 1, SLOT_BYTES, multiprocessors=16, **kwargs)


def test_memory_is_signals_then_two_slots_then_what_was_placed() -> None:
    found = workspace(placed_bytes=700)
    signal_bytes = 512 * WORLD_SIZE * 8
    assert Workspace.signal_bytes(WORLD_SIZE) == signal_bytes
    assert found.buffer.numel() == signal_bytes + 2 * SLOT_BYTES + 768
    start = found.buffer.data_ptr()
    assert found.peers.signal_pointers.tolist() == [start + rank for rank in range(WORLD_SIZE)]
    between = found.peers.buffer_pointers - found.peers.signal_pointers
    assert between.tolist() == [signal_bytes] * WORLD_SIZE
    first = found.empty(3, 5, dtype=torch.float32)
    second = found.empty(7, dtype=torch.bfloat16)
    assert (first.shape, second.shape) == ((3, 5), (7,))
    assert first.data_ptr() == start + signal_bytes + 2 * SLOT_BYTES
    assert second.data_ptr() == first.data_ptr() + 256


def test_no_room_for_another_tensor() -> None:
    found = workspace(placed_bytes=256)
    with pytest.raises(KernelError) as caught:
        found.empty(5, 60, dtype=torch.bfloat16)
    assert str(caught.value) == (
        "no room for another symmetric tensor\n"
        "  where: [5, 60] torch.bfloat16, 600 bytes\n"
        "  found: 256 bytes are free\n"
        "  remedy: make the workspace with more placed_bytes"
    )


def test_refusal_says_what_does_not_fit() -> None:
    found = workspace()
    assert found.refusal(8, 64, torch.bfloat16) is None
    assert found.refusal(9, 64, torch.bfloat16) == "1152 bytes do not fit a slot of 1024 bytes"


def test_check_names_the_missing_rank() -> None:
    found = workspace(spin_limit=100)
    found.check()
    found.peers.state[:-1] = 6
    found.peers.state[-1] = 1 + 3
    with pytest.raises(KernelError) as caught:
        found.check()
    assert str(caught.value).startswith(
        "rank 1 waited in vain for rank 3\n"
        "  where: call 3 on this workspace, or one before it\n"
        "  found: no signal in 100 looks\n"
    )


def refused(group: dist.ProcessGroup) -> str:
    try:
        Workspace.rendezvous(group, slot_bytes=1024)
    except KernelError as error:
        return str(error)
    return "served"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine serves it")
def test_without_cuda_every_rank_is_refused(gloo_pool: Callable[[int], SimpleNamespace]) -> None:
    assert gloo_pool(2).run(refused) == [
        "no symmetric memory for this group\n"
        "  where: rank 0\n"
        "  found: there is no CUDA device\n"
        "  remedy: run the plan without fused kernels"
    ] * 2  # fmt: skip


def made(group: dist.ProcessGroup, step: str, at: int) -> tuple[str, list[str]]:
    """What becomes of the memory where ``step`` goes wrong on rank ``at``, and the steps taken."""
    from torch.distributed import _symmetric_memory

    wrong, steps = step if group.rank() == at else "", list[str]()

    def empty(size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        steps.append("empty")
        if wrong == "empty":
            raise torch.OutOfMemoryError(f"out of memory on rank {at}\nand where")
        return torch.zeros(size + 64, dtype=dtype)[64 * (wrong == "offset") :][:size]

    def rendezvous(buffer: torch.Tensor, name: str) -> Any:
        steps.append("rendezvous")
        if wrong == "rendezvous":
            raise RuntimeError
        return SimpleNamespace(buffer_ptrs=[buffer.untyped_storage().data_ptr()] * group.size())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_symmetric_memory, "empty", empty)
        patch.setattr(_symmetric_memory, "rendezvous", rendezvous)
        try:
            buffer, addresses, _ = _symmetric_buffer(512, torch.device("cpu"), group)
        except KernelError as error:
            return str(error), steps
    assert addresses == [buffer.data_ptr()] * group.size()
    return f"{buffer.numel()} bytes", steps


@pytest.mark.parametrize(
    ("step", "found", "steps"),
    [
        ("empty", "out of memory on rank 2", ["empty"]),
        ("rendezvous", "RuntimeError", ["empty", "rendezvous"]),
        ("offset", "64 bytes into its allocation, but 0 on rank 0", ["empty", "rendezvous"]),
    ],
)
def test_what_fails_on_one_rank_is_an_error_on_every_rank(
    gloo_pool: Callable[[int], SimpleNamespace], step: str, found: str, steps: list[str]
) -> None:
    told = gloo_pool(4).run(made, step, 2)
    assert len({message for message, _ in told}) == 1
    assert told[0][0].startswith(
        "no symmetric memory for this group\n"
        "  where: rank 2, 512 bytes\n"
        f"  found: {found}\n"
        "  remedy: run the plan without fused kernels"
    )
    assert [taken for _, taken in told] == [steps] * 4


def test_memory_that_every_rank_has(gloo_pool: Callable[[int], SimpleNamespace]) -> None:
    assert gloo_pool(4).run(made, "", 0) == [("512 bytes", ["empty", "rendezvous"])] * 4


def rank_process(rank: int, world_size: int, folder: str) -> None:
    os.environ["TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES"] = "1"
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size
    )
    torch.cuda.set_device(0)
    slot_bytes = 33 * 1024 * 2
    space = Workspace.rendezvous(
        dist.group.WORLD, slot_bytes=slot_bytes, placed_bytes=2 * (slot_bytes + 256)
    )
    ranks = SimpleNamespace(workspaces=[space] * world_size)
    worst = {}
    for name, run in RUNS.items():
        for rows in (1, 33):
            o = Operands(ranks, rows, 1024, torch.bfloat16, 1.0, seed=rows)
            worst[f"{name}, {rows} rows"] = deviation(o, rank, run(o, rank))
    torch.save(worst, f"{folder}/{rank}.pt")
    torch.cuda.synchronize()
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.gpu
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_in_processes_on_one_device(world_size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(rank_process, (world_size, folder), nprocs=world_size)
        found = [torch.load(f"{folder}/{rank}.pt") for rank in range(world_size)]
    for rank, worst in enumerate(found):
        assert len(worst) == 2 * len(RUNS)
        assert not {name: value for name, value in worst.items() if not value <= 1}, rank
