"""This process among the ranks that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from compiler.errors import CommPlanError


def device_of_rank(index: int) -> torch.device:
    """Return the GPU of a rank on this node, made the current one; the CPU without GPUs."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if index >= torch.cuda.device_count():
        raise CommPlanError(
            "each rank needs a GPU of its own",
            found=f"{torch.cuda.device_count()} GPUs, and a rank numbered {index}",
            remedy="start fewer ranks, or hide the GPUs: CUDA_VISIBLE_DEVICES=''",
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


@contextmanager
def joined(command: str) -> Iterator[torch.device]:
    """Join the process group of all ranks, over NCCL, or over gloo without GPUs.

    Args:
        command: what runs, for the message.

    Raises:
        CommPlanError: torchrun did not start this process, or there are too few GPUs.
    """
    if "WORLD_SIZE" not in os.environ:
        raise CommPlanError(
            f"{command} runs on the ranks of the model, which torchrun starts",
            remedy=f"torchrun --nproc-per-node 2 --no-python {command} …",
        )
    device = device_of_rank(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()
