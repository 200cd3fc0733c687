"""Calls of norms and attention."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tests.compiler.ir.rules.laws import Sample, masks, reals, sample

WEIGHT = "linear in weight and bias, which are no sums"
aten = torch.ops.aten


def norms() -> Iterator[Sample]:
    yield sample(aten.rms_norm.default, reals(2, 6, 4), [4], reals(4), 1e-6, refuses=WEIGHT)
    yield sample(aten.rms_norm.default, reals(6, 2, 4), [2, 4])
    yield sample(aten.layer_norm.default, reals(6, 4), [4], reals(4), reals(4), refuses=WEIGHT)
    yield sample(aten.native_layer_norm.default, reals(2, 6, 4), [4], reals(4), None, 1e-6)
    if hasattr(aten, "_fused_rms_norm"):
        yield sample(aten._fused_rms_norm.default, reals(6, 4), [4], reals(4), 1e-6)


def attentions() -> Iterator[Sample]:
    op = aten.scaled_dot_product_attention.default

    def heads(q: int = 4, kv: int = 4, rows: int = 6) -> list[torch.Tensor]:
        return [reals(2, q, rows, 4), reals(2, kv, 8, 4), reals(2, kv, 8, 6)]

    yield sample(op, *heads())
    yield sample(op, *heads(rows=8), None, 0.0, True)
    yield sample(op, *heads(), reals(6, 8))
    yield sample(op, *heads(), reals(2, 1, 6, 8), scale=0.5)
    yield sample(op, *heads(), masks(2, 4, 6, 8) | torch.eye(6, 8, dtype=torch.bool))
    yield sample(op, *heads(kv=2), enable_gqa=True)
    yield sample(op, *heads(kv=2, rows=8), None, 0.0, True, enable_gqa=True)
    cpu = getattr(aten, "_scaled_dot_product_flash_attention_for_cpu", None)
    if cpu is not None:
        yield sample(cpu.default, *(reals(2, 4, 6, 8) for _ in range(3)),
                     holds="the rows of a backend are not worked out")  # fmt: skip
        yield sample(cpu.default, *(reals(2, 4, 6, 8) for _ in range(3)), attn_mask=reals(6, 6))


SAMPLES = (*norms(), *attentions())
