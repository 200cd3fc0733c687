"""Attention of backends that this machine cannot run: what their meanings claim."""

from __future__ import annotations

import pytest
import torch
from torch import fx
from torch._subclasses import FakeTensorMode

from compiler.ir.rules import Meaning, meaning

aten = torch.ops.aten
BACKENDS = {
    "_scaled_dot_product_flash_attention": (0.0, True),
    "_scaled_dot_product_efficient_attention": (None, True, 0.0, True),
    "_scaled_dot_product_cudnn_attention": (None, True, 0.0, True),
    "_scaled_dot_product_fused_attention_overrideable": (None, 0.0, True),
}


def backend(name: str, rest: tuple[object, ...], kv_heads: int = 8) -> Meaning:
    graph = fx.Graph()
    with FakeTensorMode():
        tensors = [torch.empty(2, n, 16, 32, dtype=torch.float16, device="meta")
                   for n in (8, kv_heads, kv_heads)]  # fmt: skip
        nodes = [graph.placeholder(c) for c in "qkv"]
        for node, x in zip(nodes, tensors, strict=True):
            node.meta["val"] = x
        call = graph.call_function(getattr(aten, name).default, (*nodes, *rest))
        call.meta["val"] = (tensors[0], tensors[0][..., 0], torch.empty((), device="meta"))
    found = meaning(call)
    assert found is not None
    return found


@pytest.mark.parametrize(("name", "rest"), BACKENDS.items())
def test_batch_and_heads_are_factors(name: str, rest: tuple[object, ...]) -> None:
    found = backend(name, rest)
    heads = ("b0", "b1", None, None)
    assert found.dims is not None
    assert found.dims.operands == (heads, heads, heads)
    assert found.dims.results == (heads, ("b0", "b1", None), ())
    assert found.terms is None
    assert not found.random


@pytest.mark.parametrize(("name", "rest"), BACKENDS.items())
def test_grouped_heads_are_no_factor(name: str, rest: tuple[object, ...]) -> None:
    found = backend(name, rest, kv_heads=2)
    assert found.dims is not None
    assert found.dims.results[0] == ("b0", None, None, None)


def test_dropout_is_random() -> None:
    assert backend("_scaled_dot_product_flash_attention", (0.5, False)).random
