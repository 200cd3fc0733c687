import pytest
import torch

from scripts.kernel_reference import add_rms_norm, deviation, sum_over_ranks


def test_add_rms_norm_is_the_definition() -> None:
    total, residual = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    y, h = add_rms_norm(total, residual, torch.tensor([1.0, 2.0]), eps=12.5, offset=1.0)
    assert h.tolist() == [[3.0, 4.0]]
    assert y.tolist() == [[pytest.approx(6 / 5), pytest.approx(12 / 5)]]


def test_sum_over_ranks_does_not_round() -> None:
    xs = [torch.tensor([value], dtype=torch.bfloat16) for value in (256.0, 1.0, 1.0)]
    assert sum_over_ranks(xs).item() == 258


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_one_rounding_is_allowed_and_two_are_not(dtype: torch.dtype) -> None:
    exact = torch.randn(10_000, dtype=torch.float64)
    rounded = exact.to(dtype)
    assert deviation(rounded, exact) <= 1
    wrong = rounded * (1 + 64 * torch.finfo(dtype).eps)
    assert deviation(wrong.to(dtype), exact) > 1


def test_nan_is_wrong() -> None:
    assert deviation(torch.tensor([1.0, torch.nan]), torch.ones(2).double()) == torch.inf


def test_nothing_deviates_by_nothing() -> None:
    assert deviation(torch.empty(0, 4), torch.empty(0, 4).double()) == 0
