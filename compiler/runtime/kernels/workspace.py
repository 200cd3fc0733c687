"""The symmetric memory of a group of ranks that the kernels work in, sized once."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from compiler.errors import KernelError
from compiler.runtime.kernels.launch import MAX_BLOCKS, Peers, payload_refusal

T = TypeVar("T")

ALIGNMENT_BYTES = 256
SLOTS = 2


def aligned(size_bytes: int) -> int:
    """``size_bytes``, rounded up to a multiple of ALIGNMENT_BYTES."""
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


class Workspace:
    """One rank's part of a group's symmetric memory, and the addresses of all parts.

    The memory holds the signals, two staging slots and, behind them, tensors placed by ``empty``.
    Kernels of one workspace run one after the other: they are numbered in the order in which they
    run, and every rank must run the same ones. ``on_current_stream`` sees to that where calls come
    from several streams. Nothing is allocated after construction, so calls may be captured in CUDA
    graphs.

    Attributes:
        buffer: uint8 [total_bytes], this rank's memory. It stays where it is.
        rank: this rank in the group.
        world_size: ranks in the group.
        slot_bytes: the largest payload of a staged call.
        device_name: what the driver calls the GPU of rank 0.
        peers: what every kernel takes of it; ``arguments`` is the same as a tuple.
    """

    def __init__(
        self,
        buffer: torch.Tensor,
        addresses: Sequence[int],
        rank: int,
        slot_bytes: int,
        *,
        multiprocessors: int,
        max_blocks: int = MAX_BLOCKS,
        spin_limit: int = 0,
        device_name: str = "",
        owner: object = None,
    ) -> None:
        """Takes zeroed memory; ``rendezvous`` provides it.

        Args:
            buffer: uint8 [total_bytes] on a CUDA device, zero, symmetric.
            addresses: where the buffer of each rank is mapped in this process, by rank.
            rank: this rank.
            slot_bytes: of one staging slot, a multiple of ALIGNMENT_BYTES.
            multiprocessors: of the device, for this rank; ranks that share a device divide them,
                because a block that waits for one which has no room waits forever.
            max_blocks: of one kernel; fewer leave room to kernels on other streams.
            spin_limit: how often a block looks for a peer before it records a fault; 0: forever.
            device_name: what the driver calls the GPU of rank 0.
            owner: kept alive with the workspace.
        """
        assert multiprocessors > 0, "a rank without a multiprocessor"
        assert 0 < max_blocks <= MAX_BLOCKS, f"{max_blocks} blocks, and {MAX_BLOCKS} signals"
        assert slot_bytes % ALIGNMENT_BYTES == 0, f"a slot of {slot_bytes} bytes is not aligned"
        self.buffer, self.rank, self.world_size = buffer, rank, len(addresses)
        self.slot_bytes, self.device_name = slot_bytes, device_name
        self._owner = owner
        self._last: dict[bool, torch.cuda.Stream] = {}  # that a call was captured on, or ran on
        self._free_from = self.signal_bytes(self.world_size) + SLOTS * slot_bytes
        table = torch.tensor(addresses, dtype=torch.int64)
        self.peers = Peers(
            torch.zeros(MAX_BLOCKS + 1, dtype=torch.int64, device=buffer.device),
            (table + self.signal_bytes(self.world_size)).to(buffer.device),
            table.to(buffer.device),
            rank,
            slot_bytes,
            multiprocessors,
            max_blocks,
            spin_limit,
        )

    @staticmethod
    def signal_bytes(world_size: int) -> int:
        """Size of the signals in front of the slots."""
        return aligned(MAX_BLOCKS * world_size * torch.int64.itemsize)

    @staticmethod
    def total_bytes(world_size: int, slot_bytes: int, placed_bytes: int) -> int:
        """Size of one rank's memory."""
        return Workspace.signal_bytes(world_size) + SLOTS * slot_bytes + aligned(placed_bytes)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The last arguments of every op."""
        return tuple(self.peers)

    def on_current_stream(self) -> tuple[Any, ...]:
        """``arguments``, for one call on the current stream that runs after those made before.

        A call on another stream than the last waits for that stream; captured calls wait for
        captured ones. Replays of a graph are seen by nobody: those who replay on several streams
        must order the replays among each other and with other calls, as for any memory that
        they write.
        """
        capturing = torch.cuda.is_current_stream_capturing()
        last = self._last.get(capturing)
        # A stream object takes the host longer than all the rest.
        current = torch._C._cuda_getCurrentRawStream(self.buffer.get_device())
        if last is None or last.cuda_stream != current:
            stream = torch.cuda.current_stream(self.buffer.device)
            if last is not None and _is_capturing(last) == capturing:
                stream.wait_stream(last)
            self._last[capturing] = stream
        return self.arguments

    def refusal(self, rows: int, hidden: int, dtype: torch.dtype) -> str | None:
        """Why a staged call on [rows, hidden] would be refused; None if it is served.

        The same on every rank, so that all may fall back together.
        """
        return payload_refusal(rows, hidden, dtype, self.slot_bytes)

    def empty(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """A tensor in symmetric memory, for the calls that read or write it without staging.

        Every rank must place the same tensors in the same order.

        Raises:
            KernelError: the workspace was made too small for it.
        """
        count = 1
        for size in shape:
            count *= size
        end = self._free_from + aligned(count * dtype.itemsize)
        if end > self.buffer.numel():
            raise KernelError(
                "no room for another symmetric tensor",
                where=f"{list(shape)} {dtype}, {count * dtype.itemsize} bytes",
                found=f"{self.buffer.numel() - self._free_from} bytes are free",
                remedy="make the workspace with more placed_bytes",
            )
        place = self.buffer[self._free_from : self._free_from + count * dtype.itemsize]
        self._free_from = end
        return place.view(dtype).view(shape)

    def check(self) -> None:
        """Wait for the device, and raise if a kernel gave up waiting for a peer. For debugging.

        Raises:
            KernelError: a peer did not come; names the first that was missed. Not recoverable:
                the ranks no longer agree on the number of calls.
        """
        fault = int(self.peers.state[-1])
        if fault:
            raise KernelError(
                f"rank {self.rank} waited in vain for rank {fault - 1}",
                where=f"call {int(self.peers.state[0]) // 2} on this workspace, or one before it",
                found=f"no signal in {self.peers.spin_limit} looks",
                remedy="see that all ranks run the same kernels in the same order, then make the "
                "workspace anew",
            )

    @classmethod
    def rendezvous(
        cls,
        group: dist.ProcessGroup,
        *,
        slot_bytes: int,
        placed_bytes: int = 0,
        device: torch.device | None = None,
        max_blocks: int = MAX_BLOCKS,
        spin_limit: int = 0,
        former: Workspace | None = None,
    ) -> Workspace:
        """Makes the workspace of a process group. Every rank calls it, with the same sizes.

        Args:
            group: its ranks are on one host, on devices that can access each other.
            slot_bytes: the largest payload of a staged call, in bytes.
            placed_bytes: room for ``empty``.
            device: this rank's; default: the current CUDA device.
            max_blocks: of one kernel; fewer leave room to kernels on other streams.
            spin_limit: looks for a peer before a fault is recorded; 0: wait forever.
            former: a workspace of the group to keep alive as long as this one.

        Raises:
            KernelError: on every rank, if symmetric memory is missing on one.
        """
        slot_bytes = aligned(slot_bytes)
        facts = _facts(device, (slot_bytes, placed_bytes, max_blocks))
        everyone = _gathered(facts, group)
        _compare(everyone)
        device = torch.device("cuda", torch.cuda.current_device()) if device is None else device
        buffer, addresses, handle = _symmetric_buffer(
            cls.total_bytes(group.size(), slot_bytes, placed_bytes), device, group
        )
        buffer.zero_()
        torch.cuda.synchronize(device)
        dist.barrier(group)  # nobody signals before all memory is zero
        devices = [facts["device"] for facts in everyone]
        shares = [count // devices.count((uuid, count)) for uuid, count in devices]
        return cls(
            buffer,
            addresses,
            group.rank(),
            slot_bytes,
            multiprocessors=min(shares),
            max_blocks=max_blocks,
            spin_limit=spin_limit,
            device_name=everyone[0]["name"],
            owner=(handle, former),
        )


def _is_capturing(stream: torch.cuda.Stream) -> bool:
    """Whether what is enqueued on ``stream`` goes into a CUDA graph."""
    with torch.cuda.stream(stream):
        return torch.cuda.is_current_stream_capturing()


def _facts(device: torch.device | None, sizes: tuple[int, ...]) -> dict[str, Any]:
    """What this rank brings, or why it cannot take part (``refusal``)."""
    facts: dict[str, Any] = {"refusal": None, "sizes": sizes}
    if not torch.cuda.is_available():
        return facts | {"refusal": "there is no CUDA device"}
    if torch.cuda.is_current_stream_capturing():
        return facts | {"refusal": "a CUDA graph is being captured"}
    for module in ("triton", "torch.distributed._symmetric_memory"):
        if importlib.util.find_spec(module) is None:
            return facts | {"refusal": f"there is no {module}"}
    properties = torch.cuda.get_device_properties(device)
    place = (str(properties.uuid), properties.multi_processor_count)
    return facts | {"host": socket.gethostname(), "device": place, "name": properties.name}


def _compare(everyone: Sequence[dict[str, Any]]) -> None:
    for rank, facts in enumerate(everyone):
        if facts["refusal"] is not None:
            raise KernelError(
                "no symmetric memory for this group",
                where=f"rank {rank}",
                found=facts["refusal"],
                remedy="run the plan without fused kernels",
            )
        for name in ("host", "sizes"):
            if facts[name] != everyone[0][name]:
                raise KernelError(
                    "no symmetric memory for this group",
                    where=f"rank {rank}",
                    found=f"{name} {facts[name]}, but {everyone[0][name]} on rank 0",
                    remedy="make workspaces of the same size, for ranks of one host",
                )


def _symmetric_buffer(
    total_bytes: int, device: torch.device, group: dist.ProcessGroup
) -> tuple[torch.Tensor, list[int], object]:
    """This rank's memory, where each rank's is mapped here, and what keeps the mapping alive.

    Ranks tell each other what became of every step: one that raised alone would leave the others
    waiting for it.

    Raises:
        KernelError: on every rank, if a step failed on one.
    """
    from torch.distributed import _symmetric_memory as memory

    size = f"{total_bytes} bytes"
    buffer, error = _tried(lambda: memory.empty(total_bytes, dtype=torch.uint8, device=device))
    _all_succeed(error, size, group)
    handle, error = _tried(lambda: memory.rendezvous(buffer, group.group_name))
    _all_succeed(error, size, group)
    # Pointers are those of allocations; the tensor may lie further back in its own.
    offset_bytes = buffer.data_ptr() - handle.buffer_ptrs[group.rank()]
    offsets = _gathered(offset_bytes, group)
    for rank, other in enumerate(offsets):
        if other != offsets[0]:
            raise KernelError(
                "no symmetric memory for this group",
                where=f"rank {rank}, {size}",
                found=f"{other} bytes into its allocation, but {offsets[0]} on rank 0",
                remedy="run the plan without fused kernels",
            )
    return buffer, [address + offset_bytes for address in handle.buffer_ptrs], handle


def _tried(step: Callable[[], Any]) -> tuple[Any, RuntimeError | None]:
    try:
        return step(), None
    except RuntimeError as error:  # running out of memory is one
        return None, error


def _all_succeed(error: RuntimeError | None, size: str, group: dist.ProcessGroup) -> None:
    """Raise KernelError on every rank if a rank has an error; names the first."""
    why = None if error is None else str(error).partition("\n")[0] or type(error).__name__
    for rank, reason in enumerate(_gathered(why, group)):
        if reason is not None:
            raise KernelError(
                "no symmetric memory for this group",
                where=f"rank {rank}, {size}",
                found=reason,
                remedy="run the plan without fused kernels; ranks that share a device need "
                "TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES=1",
            ) from error


def _gathered(item: T, group: dist.ProcessGroup) -> list[T]:
    """Every rank's ``item``, by rank."""
    everyone: list[T] = [item] * group.size()
    dist.all_gather_object(everyone, item, group=group)
    return everyone
