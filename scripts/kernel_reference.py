"""What the kernels compute, in float64, and how far a result may be from it."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def sum_over_ranks(xs: Sequence[torch.Tensor]) -> torch.Tensor:
    """The exact sum, float64."""
    return torch.stack([x.double() for x in xs]).sum(0)


def add_rms_norm(
    total: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, offset: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Y and residual_out of ``ops`` in float64."""
    h = total.double() + residual.double()
    return h * (h.square().mean(-1, keepdim=True) + eps).rsqrt() * (weight.double() + offset), h


def deviation(actual: torch.Tensor, exact: torch.Tensor) -> float:
    """Largest error of ``actual`` in units of what is allowed; over 1 is wrong, NaN is infinite.

    Allowed: one rounding to the dtype of ``actual`` (relative, half a unit in the last place),
    and fp32 rounding on the way: 2^-18 of the largest value (sums may cancel).
    """
    if exact.numel() == 0:
        return 0.0
    rounding = torch.finfo(actual.dtype).eps / 2
    floor = torch.finfo(actual.dtype).smallest_normal * rounding
    allowed = 1.001 * rounding * exact.abs() + 2**-18 * exact.abs().amax() + floor
    error = (actual.double() - exact).abs() / allowed
    return float(error.nan_to_num(nan=torch.inf).amax())
