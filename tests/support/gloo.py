"""A pool of gloo ranks, started once and shared by the tests of a session."""

import multiprocessing
import os
import pickle
import tempfile
import threading
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

POOL_SIZE = 8
GROUP_SIZES = (1, 2, 4, 8)
TIMEOUT_S = 180


class RankError(AssertionError):
    """A rank raised; the message holds its traceback."""


class GlooPool:
    """Processes, eight by default; ``run`` uses the first ``size`` of them as one group.

    Example: ``gloo_pool(4).run(function, arg)`` calls ``function(group, arg)`` on 4 ranks, where
    ``group`` is their process group, and returns the 4 results in rank order. The function must
    be importable (module level), arguments and results picklable. A failure on any rank ends all
    processes; the next run starts them again. So does a run that takes longer than ``timeout_s``.
    """

    def __init__(self, processes: int = POOL_SIZE, timeout_s: int = TIMEOUT_S) -> None:
        self.world_size, self.timeout_s = processes, timeout_s
        self.processes: list[Any] = []
        self.pipes: list[Connection] = []

    def run(self, size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        sizes = tuple(s for s in GROUP_SIZES if s <= self.world_size)
        if size not in sizes:
            raise ValueError(f"the pool has groups of {sizes} ranks, not of {size}")
        if not self.processes:
            self.start()
        job = pickle.dumps((size, function, args))
        for pipe in self.pipes[:size]:
            pipe.send_bytes(job)
        results: dict[int, Any] = {}
        while len(results) < size:
            pending = [p for rank, p in enumerate(self.pipes[:size]) if rank not in results]
            ready = wait(pending, timeout=self.timeout_s)
            if not ready:
                self.stop()
                raise RankError(
                    f"no rank of {function.__qualname__} answered in {self.timeout_s} s"
                )
            for pipe in ready:
                rank = self.pipes.index(pipe)
                results[rank] = self._receive(rank)
        return [results[rank] for rank in range(size)]

    def _receive(self, rank: int) -> Any:
        try:
            succeeded, result = pickle.loads(self.pipes[rank].recv_bytes())
        except EOFError:
            succeeded, result = False, "the process ended"
        if not succeeded:
            self.stop()
            raise RankError(f"rank {rank}: {result}")
        return result

    def start(self) -> None:
        # The fork server imports what ranks use once for all of them, and, unlike a fork of this
        # process, has no threads that could hold a lock.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch.distributed", "compiler.optimize"])
        store = Path(tempfile.mkdtemp(prefix="gloo-pool-")) / "store"
        for rank in range(self.world_size):
            ours, theirs = context.Pipe()
            args = (rank, self.world_size, self.timeout_s, str(store), theirs)
            process = context.Process(target=serve, args=args, daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self.pipes.append(ours)

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join()
        for pipe in self.pipes:
            pipe.close()
        self.processes, self.pipes = [], []


def end_with_parent() -> None:
    """End this process as soon as the one that started it ends, whatever it then waits for."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a rank has a parent"
    wait([parent.sentinel])
    os._exit(1)


def serve(rank: int, world_size: int, timeout_s: int, store: str, pipe: Connection) -> None:
    """Runs jobs on one rank until the other end of ``pipe`` closes."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_s),
    )
    groups = {size: dist.new_group(range(size)) for size in GROUP_SIZES if size <= world_size}
    while True:
        try:
            size, function, args = pickle.loads(pipe.recv_bytes())
            answer = (True, function(groups[size], *args))
        except EOFError:
            return
        except BaseException:
            answer = (False, traceback.format_exc())
        pipe.send_bytes(pickle.dumps(answer))
