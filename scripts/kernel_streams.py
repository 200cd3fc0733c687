"""Several ranks in one process on one device, one stream each: for tests and for timing.

Three things make such ranks wait for each other forever:

* Fewer hardware queues than streams: one rank's kernel queues behind another's that spins. Start
  the process with CUDA_DEVICE_MAX_CONNECTIONS=32.
* A kernel that is loaded, or memory that is allocated, while another rank spins: run ``warm``
  first.
* Spinning blocks on every multiprocessor: another kernel that a rank has to run first may want the
  memory of a multiprocessor divided otherwise, for which one has to be empty.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from compiler.runtime.kernels.launch import MAX_BLOCKS
from compiler.runtime.kernels.workspace import Workspace, aligned

FAR_AHEAD = 2**62
"""A signal that satisfies every barrier."""
EMPTY_MULTIPROCESSORS = 4
"""Left without a block of any rank, unless the ranks run nothing but these kernels."""


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
        spin_limit: int = 0,
        alone: bool = False,
        device: str = "cuda",
    ) -> None:
        """Allocates all memory.

        Args:
            world_size: number of ranks.
            slot_bytes: as in ``Workspace.rendezvous``.
            placed_bytes: likewise.
            spin_limit: as in ``Workspace.rendezvous``.
            alone: the ranks run no other kernels in between, so the grids may fill the device.
            device: the device they share.
        """
        multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
        some_empty = (multiprocessors - EMPTY_MULTIPROCESSORS) // world_size
        slot_bytes = aligned(slot_bytes)
        total_bytes = Workspace.total_bytes(world_size, slot_bytes, placed_bytes)
        buffers = [
            torch.zeros(total_bytes, dtype=torch.uint8, device=device) for _ in range(world_size)
        ]
        addresses = [buffer.data_ptr() for buffer in buffers]
        self.workspaces = [
            Workspace(
                buffer,
                addresses,
                rank,
                slot_bytes,
                multiprocessors=multiprocessors // world_size,
                max_blocks=MAX_BLOCKS if alone else some_empty,
                spin_limit=spin_limit,
            )
            for rank, buffer in enumerate(buffers)
        ]
        self.streams = [torch.cuda.Stream(device) for _ in range(world_size)]  # type: ignore[no-untyped-call]

    def run(self, *bodies: Callable[[int], object]) -> None:
        """Runs ``body(rank)`` on every rank's stream, one body after the other.

        It only enqueues, and may be captured in a CUDA graph. All ranks get a body before any
        gets the next: a stream takes about a thousand launches before it blocks the host.
        """
        current = torch.cuda.current_stream()
        for stream in self.streams:
            stream.wait_stream(current)
        for body in bodies:
            for rank, stream in enumerate(self.streams):
                with torch.cuda.stream(stream):
                    body(rank)
        for stream in self.streams:
            current.wait_stream(stream)

    def warm(self, body: Callable[[int], object]) -> None:
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
