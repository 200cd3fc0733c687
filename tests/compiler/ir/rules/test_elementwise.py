"""Conversions: which keep every value."""

from __future__ import annotations

import itertools

import pytest
import torch

from compiler.ir.rules.elementwise import widens

BYTES = (
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
)  # fmt: skip
FLOATS = (*BYTES, torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
OTHERS = (torch.bool, torch.complex64, torch.float32, torch.int32)


def values(dtype: torch.dtype) -> torch.Tensor:
    """All values of up to sixteen bits; of more, those of which a narrower type may lose a bit."""
    bits = dtype.itemsize * 8
    if bits <= 16:
        unsigned = torch.arange(2**bits, dtype=torch.int32)
        return unsigned.to(torch.uint8 if bits == 8 else torch.uint16).view(dtype)
    if not dtype.is_floating_point:
        return torch.tensor([torch.iinfo(dtype).min, torch.iinfo(dtype).max, 0, 1], dtype=dtype)
    info = torch.finfo(dtype)
    least = info.smallest_normal * info.eps
    return torch.tensor([1 + info.eps, info.max, least, info.smallest_normal], dtype=dtype)


def keeps(before: torch.dtype, after: torch.dtype) -> bool:
    """Whether the kernel's conversion gives back every value."""
    wide = torch.float64 if before.is_floating_point else torch.int64
    held = values(before)
    numbers = ~held.to(wide).isnan() & ~held.to(wide).isinf()
    return torch.equal(held.to(wide)[numbers], held.to(after).to(wide)[numbers])


@pytest.mark.parametrize(
    ("before", "after"),
    [*itertools.product(FLOATS, FLOATS), *itertools.product(INTEGERS, INTEGERS)],
    ids=lambda dtype: str(dtype).removeprefix("torch."),
)
def test_a_conversion_widens_exactly_if_the_kernel_keeps_every_value(
    before: torch.dtype, after: torch.dtype
) -> None:
    if before in BYTES and after in BYTES:
        assert not widens(before, after)
    else:
        same = before == after
        assert (same or widens(before, after)) == keeps(before, after)


@pytest.mark.parametrize(("before", "after"), [*itertools.permutations(OTHERS, 2)])
def test_other_kinds_of_numbers_are_not_compared(before: torch.dtype, after: torch.dtype) -> None:
    assert not widens(before, after)


def test_packed_types_are_not_compared() -> None:
    """Several numbers in one element have no limits to compare."""
    for name in ("float4_e2m1fn_x2", "uint4"):
        if hasattr(torch, name):
            assert not widens(getattr(torch, name), torch.float32)
            assert not widens(getattr(torch, name), torch.int64)
