"""Digests of tensors: equal bytes, equal digest; different bytes, a different one but by accident.

On a CPU it is blake2b over the bytes, 128 bits. Elsewhere the bytes stay where they are: each
64-bit word is mixed with its position by a fixed bijection and the results are summed modulo
2**64, under two seeds, so that swapped, moved and changed words all show. Only the two sums cross
to the host.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping

import torch
from torch._subclasses.fake_tensor import FakeTensor

WORDS_PER_BLOCK = 1 << 24
"""Words mixed at a time on a device; bounds the temporary memory to a few blocks of 128 MiB."""

SEEDS = (0x1F83D9ABFB41BD6B, 0x5BE0CD19137E2179)
MULTIPLIERS = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)


def has_data(tensor: torch.Tensor) -> bool:
    """Return whether the tensor holds values: it is neither on the meta device nor fake."""
    return tensor.device.type != "meta" and not isinstance(tensor, FakeTensor)


def digests(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return name -> digest of every tensor that holds values; one host synchronization in all."""
    digest_of: dict[str, str] = {}
    pending: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for name, tensor in tensors.items():
            if not has_data(tensor):
                continue
            dense = tensor.detach().contiguous().reshape(-1)
            kind = f"{tensor.dtype}{tuple(tensor.shape)}"
            if dense.numel() == 0:
                digest_of[name] = kind
            elif dense.device.type == "cpu":
                digest_of[name] = _host_digest(dense) + kind
            else:
                digest_of[name], pending[name] = kind, _device_sums(dense)
        on_host = torch.stack(list(pending.values())).tolist() if pending else []
        for name, sums in zip(pending, on_host, strict=True):
            digest_of[name] = (
                f"{sums[0] & (2**64 - 1):016x}{sums[1] & (2**64 - 1):016x}{digest_of[name]}"
            )
    return digest_of


def _host_digest(dense: torch.Tensor) -> str:
    size_bytes = dense.numel() * dense.element_size()
    view = (ctypes.c_char * size_bytes).from_address(dense.data_ptr())
    return hashlib.blake2b(view, digest_size=16).hexdigest()


def _device_sums(dense: torch.Tensor) -> torch.Tensor:
    """Return two position-dependent sums over the 64-bit words of a dense tensor, int64[2]."""
    raw = dense.view(torch.uint8)
    if raw.numel() % 8:
        raw = torch.nn.functional.pad(raw, (0, -raw.numel() % 8))
    elif raw.storage_offset() % 8:
        raw = raw.clone()
    words = raw.view(torch.int64)
    total = torch.zeros(2, dtype=torch.int64, device=dense.device)
    for start in range(0, words.numel(), WORDS_PER_BLOCK):
        block = words[start : start + WORDS_PER_BLOCK]
        place = torch.arange(start, start + block.numel(), device=dense.device)
        mixed = [_mix(block ^ _mix(place + seed)).sum() for seed in SEEDS]
        total += torch.stack(mixed)
    return total


def _mix(words: torch.Tensor) -> torch.Tensor:
    """Map 64-bit words one to one, so that every bit reaches every other."""
    for multiplier, shift in zip(MULTIPLIERS, (30, 27), strict=True):
        words = (words ^ _shifted(words, shift)) * multiplier
    return words ^ _shifted(words, 31)


def _shifted(words: torch.Tensor, shift: int) -> torch.Tensor:
    """Shift right without the sign, which ``>>`` repeats: that could not be inverted."""
    return (words >> shift) & ((1 << (64 - shift)) - 1)
