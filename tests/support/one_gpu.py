"""Ranks that share one CUDA device, and talk over gloo."""

import os
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

RANKS = 2
OVERLAPPING = "TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES"


def _rank(
    index: int, folder: str, body: Callable[..., Any], args: tuple[Any, ...], symmetric: bool
) -> None:
    os.environ.pop(OVERLAPPING, None)
    if symmetric:
        os.environ[OVERLAPPING] = "1"
    warnings.simplefilter("ignore")
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=index, world_size=RANKS
    )
    with torch.no_grad():
        found = body(dist.group.WORLD, *args)
    torch.save(found, f"{folder}/{index}.pt")
    dist.barrier()
    dist.destroy_process_group()


def on_one_gpu(body: Callable[..., Any], *args: Any, symmetric: bool = True) -> list[Any]:
    """Results of ``body(group, *args)`` by rank.

    Args:
        body: a function of a module.
        args: picklable.
        symmetric: whether the ranks may share symmetric memory.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, (folder, body, args, symmetric), nprocs=RANKS)
        return [torch.load(f"{folder}/{i}.pt", weights_only=False) for i in range(RANKS)]
