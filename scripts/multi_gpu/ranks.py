"""The ranks of a benchmark: what they decide together, and how one rank's error ends them all."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from bench import measure
from compiler.errors import CommPlanError
from models.step3p5.parallel import ParallelError

T = TypeVar("T")
USER_ERROR, OTHER_ERROR = 3, 1
WITHOUT_MULTICAST = {
    "NCCL_NVLS_ENABLE": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
}
"""Multicast over NVLink stays off."""


class WrongResultError(CommPlanError):
    """Outputs that are not what they must be. All ranks raise it together: other parts may run."""


class Ranks:
    """This process among the ranks that torchrun started on one node.

    Attributes:
        device: of this rank.
        cuda: whether it is a GPU.
        shared: whether ranks share a GPU, and talk over gloo: times say nothing about links.
        skipped: what was left out, and why.
        failed: what gave wrong results.
    """

    def __init__(self, device: str, begun_s: float, budget_s: float) -> None:
        """Joins the group. ``begun_s``: when the command began, in seconds since the epoch."""
        os.environ.update(WITHOUT_MULTICAST)
        local, here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
        if here != int(os.environ["WORLD_SIZE"]):
            raise CommPlanError(
                "the benchmark runs on one node",
                found=f"{os.environ['WORLD_SIZE']} ranks, {here} of them on this node",
                remedy="start it on one node",
            )
        self.cuda = device == "cuda"
        self.shared = self.cuda and torch.cuda.device_count() < here
        self.device = torch.device("cpu")
        if self.cuda:
            self.device = torch.device("cuda", 0 if self.shared else local)
            torch.cuda.set_device(self.device)
        if self.shared:
            os.environ["TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES"] = "1"
        else:
            os.environ.pop("TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES", None)
        self.backend = "nccl" if self.cuda and not self.shared else "gloo"
        dist.init_process_group(self.backend, timeout=timedelta(minutes=10))
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.begun_s, self.budget_s = begun_s, budget_s
        self.skipped: list[str] = []
        self.failed: list[str] = []

    @property
    def group(self) -> dist.ProcessGroup:
        """All ranks."""
        group_ = dist.group.WORLD
        assert group_ is not None, "the process group is initialized"
        return group_

    @property
    def graphs(self) -> bool:
        """Whether collectives may be captured in CUDA graphs."""
        return self.cuda and not self.shared

    @property
    def no_graphs(self) -> str:
        """Why collectives cannot be captured in CUDA graphs."""
        return "the ranks share a GPU, over gloo" if self.shared else "the ranks run on CPUs"

    def tell(self, what: str) -> None:
        """Progress, on rank 0's standard error."""
        if self.rank == 0:
            passed = time.time() - self.begun_s
            print(f"[{passed:6.1f} s] {what}", file=sys.stderr, flush=True)

    def agreed(self, value: T) -> T:
        """Rank 0's value."""
        values: list[Any] = [value]
        dist.broadcast_object_list(values, src=0)
        first: T = values[0]
        return first

    def gathered(self, value: T) -> list[T]:
        """Every rank's value."""
        everyone: list[Any] = [value] * self.size
        dist.all_gather_object(everyone, value)
        return everyone

    def largest(self, value: float) -> float:
        """The largest of all ranks' values."""
        return measure.slowest(value, self.group, self.device)

    def time_us(self, call: Callable[[], object], calls: int = 1) -> float:
        """What a call takes on the slowest rank, all starting together: mean of some calls."""
        dist.barrier()
        return self.largest(measure.seconds_of(call, calls, self.device)) / calls * 1e6

    def enough_time(self, what: str, needed_s: float, remedy: str) -> bool:
        """Whether the budget lasts for ``what``; if not, that is announced and kept."""
        left_s = self.budget_s - (time.time() - self.begun_s)
        if self.agreed(left_s >= needed_s):
            return True
        self.skip(
            f"{what}: {max(left_s, 0):.0f} s of the budget are left, about {needed_s:.0f} s "
            f"needed; {remedy}"
        )
        return False

    def skip(self, what: str) -> None:
        """Announces what is left out, and why."""
        self.skipped.append(what)
        self.tell(f"skipped: {what}")

    def fail(self, what: str, error: WrongResultError) -> None:
        """Announces a wrong result, which ends ``what`` but not the command."""
        self.failed.append(f"{what}: {error}")
        self.tell(f"FAILED: {self.failed[-1]}")


def run_rank(body: Callable[[], int]) -> int:
    """Runs ``body`` on this rank; the exit code.

    The first rank to fail says why. Others, which then fail for want of it, are silent, and the
    launcher ends those that wait.
    """
    try:
        code = body()
        dist.destroy_process_group()
        return code
    except (CommPlanError, ParallelError) as error:
        text, code = f"error: {error}", USER_ERROR
    except Exception:
        text, code = traceback.format_exc(), OTHER_ERROR
    if _is_first():
        print(f"rank {os.environ['RANK']}: {text}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)  # an orderly end would wait for ranks that do not come


def _is_first() -> bool:
    """Whether no other rank has failed before."""
    if not dist.is_initialized():
        return os.environ["RANK"] == "0"
    mine = os.environ["RANK"]
    store = dist.distributed_c10d._get_default_store()
    return bool(store.compare_set("bench_multi_gpu/failed", "", mine) == mine.encode())
