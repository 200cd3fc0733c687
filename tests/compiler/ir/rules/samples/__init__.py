"""Sample calls of every op that has a rule."""

from __future__ import annotations

import operator

import torch

from tests.compiler.ir.rules.laws import Sample
from tests.compiler.ir.rules.samples import (
    attention,
    contraction,
    elementwise,
    indexing,
    reduction,
    shaping,
)

aten = torch.ops.aten

SAMPLES: tuple[Sample, ...] = (
    *elementwise.SAMPLES,
    *shaping.SAMPLES,
    *reduction.SAMPLES,
    *contraction.SAMPLES,
    *indexing.SAMPLES,
    *attention.SAMPLES,
)
RANDOM = elementwise.RANDOM

UNSAMPLED: dict[object, str] = (
    {
        operator.getitem: "takes a tuple: tested by itself in test_shaping",
    }
    | {
        getattr(aten, name).default: "no CPU kernel: tested by its meaning in test_attention"
        for name in (
            "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_efficient_attention",
            "_scaled_dot_product_cudnn_attention",
            "_scaled_dot_product_fused_attention_overrideable",
        )
        if hasattr(aten, name)
    }
    | {
        getattr(aten, name).default: "no CPU kernel, and uninterpreted"
        for name in ("_scaled_grouped_mm", "_scaled_grouped_mm_v2")
        if hasattr(aten, name)
    }
    | {
        getattr(aten, name).default: "no CPU kernel in PyTorch 2.11; means what _scaled_mm does"
        for name in ("_scaled_mm_v2",)
        if hasattr(aten, name) and not contraction.scales_rows()
    }
)
