"""The entry points build one rank's part of the real model without memory."""

import pytest
import torch
import torch.distributed as dist

from models.step3p5.entry import decode, prefill


@pytest.fixture(params=[1, 8])
def world_size(request):
    dist.init_process_group("fake", rank=0, world_size=request.param)
    yield request.param
    dist.destroy_process_group()


def test_prefill(world_size):
    model, (ids, positions, cache) = prefill(tokens=16, layers=4, cache=True)
    assert model.ranks.size == world_size
    assert model.lm_head.weight.shape == (128896 // world_size, 4096)
    assert {(p.device.type, p.dtype) for p in model.lm_head.parameters()} == {
        ("meta", torch.bfloat16)
    }
    assert ids.shape == positions.shape == (1, 16)
    assert [keys.shape[:2] for keys, _ in cache] == [(1, 32)] * 4
    assert [layer.is_sparse for layer in model.model.layers] == [False] * 3 + [True]
    assert len(prefill(layers=1)[1]) == 2


def test_decode(world_size):
    model, (ids, positions, cache) = decode(batch=3, max_tokens=64, experts="ep", layers=4)
    assert model.experts == "ep"
    assert ids.shape == positions.shape == (3, 1)
    assert cache[0][0].shape == (3, 64, max(8 // world_size, 1), 128)
