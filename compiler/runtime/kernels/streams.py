"""Several ranks in one process on one device, one stream each: for tests and for timing.

Two things make such ranks wait for each other forever. The process must be started with
CUDA_DEVICE_MAX_CONNECTIONS=32, or one rank's kernel queues behind another's that spins; and a
kernel must not be loaded, or memory allocated, while one spins: run ``warm`` first.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from compiler.runtime.kernels.workspace import Workspace, aligned

FAR_AHEAD = 2**62
"""A signal that satisfies every barrier."""


class StreamRanks:
    """The workspaces of n ranks in one process, each with a stream.

    Attributes:
        workspaces: by rank.
        streams: by rank.
    """

    def __init__(
        self,
        world_size: int,
        *,
        slot_bytes: int,
        placed_bytes: int = 0,
        max_blocks: int | None = None,
        spin_limit: int = 0,
        device: str = "cuda",
    ) -> None:
        """Allocates all memory.

        Args:
            world_size: number of ranks.
            slot_bytes: as in ``Workspace.rendezvous``.
            placed_bytes: likewise.
            max_blocks: blocks of one rank's kernel; default: so that those of all ranks fit the
                device, one on each multiprocessor.
            spin_limit: as in ``Workspace.rendezvous``.
            device: the device they share.
        """
        if max_blocks is None:
            count = torch.cuda.get_device_properties(device).multi_processor_count
            max_blocks = count // world_size
        slot_bytes = aligned(slot_bytes)
        total_bytes = Workspace.total_bytes(world_size, slot_bytes, placed_bytes)
        buffers = [
            torch.zeros(total_bytes, dtype=torch.uint8, device=device) for _ in range(world_size)
        ]
        addresses = [buffer.data_ptr() for buffer in buffers]
        self.workspaces = [
            Workspace(
                buffer, addresses, rank, slot_bytes, max_blocks=max_blocks, spin_limit=spin_limit
            )
            for rank, buffer in enumerate(buffers)
        ]
        self.streams = [torch.cuda.Stream(device) for _ in range(world_size)]

    def run(self, body: Callable[[int], None]) -> None:
        """Runs ``body(rank)`` for every rank on its stream, between what comes before and after.

        It only enqueues, and may be captured in a CUDA graph.
        """
        current = torch.cuda.current_stream()
        for stream in self.streams:
            stream.wait_stream(current)
        for rank, stream in enumerate(self.streams):
            with torch.cuda.stream(stream):
                body(rank)
        for stream in self.streams:
            current.wait_stream(stream)

    def warm(self, body: Callable[[int], None]) -> None:
        """Runs ``body`` for one rank after the other, none of which waits; results mean nothing."""
        self._set_signals(FAR_AHEAD)
        for rank, stream in enumerate(self.streams):
            with torch.cuda.stream(stream):
                body(rank)
            torch.cuda.synchronize()
        self._set_signals(0)

    def _set_signals(self, value: int) -> None:
        torch.cuda.synchronize()
        for workspace in self.workspaces:
            end = Workspace.signal_bytes(workspace.world_size)
            workspace.buffer[:end].view(torch.int64).fill_(value)
            workspace.peers.state.zero_()
        torch.cuda.synchronize()
