"""Random weights that depend on name and seed alone, so that any sharding gives the same model."""

import hashlib
import math

import torch
from torch import Tensor


def random_tensor(
    name: str, shape: tuple[int, ...], seed: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Normal float32 values of the checkpoint's tensor ``name``.

    Matrices keep the variance of their input; norm weights and router biases, the vectors, have
    standard deviation 0.1, so that mistakes with either are visible.
    """
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "little"))
    deviation = 0.1 if len(shape) == 1 else 1 / math.sqrt(shape[-1])
    return torch.randn(shape, generator=generator, device=device) * deviation
