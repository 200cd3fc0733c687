"""Caches of transformers through an optimized model: contents, identity, and few captures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import _functional_collectives as funcol
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import (
    Cache,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
    StaticLayer,
)

from compiler import optimize_allreduce
from compiler.capture.fake_ranks import fake_process_group
from compiler.runtime.module import OptimizedModule
from tests.families.families import FAMILIES

PROMPT, WINDOW, LAST = 3, 4, 7


@pytest.fixture
def group() -> Iterator[None]:
    with fake_process_group(0, 2), torch.no_grad():
        yield


class Summing(nn.Module):
    """Sums what a module returns over the ranks, as a row-parallel layer does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        group = dist.group.WORLD
        assert group is not None
        return funcol.all_reduce(self.inner(x), "sum", group)


class Decoder(nn.Module):
    """A family's decoder, whose MLPs are sums over ranks."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.model: Any = FAMILIES[name].full(torch.float32, "batched_mm")
        self.config = self.model.config
        for layer in self.model.model.layers:
            layer.mlp = Summing(layer.mlp)

    def forward(self, ids: Tensor, cache: Any = None) -> Any:
        return self.model(input_ids=ids, past_key_values=cache, use_cache=True)


def state(cache: Any) -> list[tuple[str, Any]]:
    held = [(name, x) for layer in cache.layers for name, x in vars(layer).items()]
    return [
        (f"{name}{key}", x)
        for name, values in held
        for key, x in (values.items() if isinstance(values, dict) else [("", values)])
    ]


def check_state(got: Any, want: Any) -> None:
    mine, own = state(got), state(want)
    assert [name for name, _ in mine] == [name for name, _ in own]
    for (name, x), (_, y) in zip(mine, own, strict=True):
        if isinstance(y, Tensor):
            torch.testing.assert_close(x, y)
        else:
            assert (type(x), x) == (type(y), y), name


def decode(model: Any, optimized: OptimizedModule, make: Callable[[], Any], last: int) -> None:
    """A prompt, then token by token; caches of both models agree after each call."""
    ids = torch.randint(3, 64, (1, last), generator=torch.Generator().manual_seed(1))
    mine, own = make(), make()
    layers = mine.layers
    for first, end in [(0, PROMPT), *((n, n + 1) for n in range(PROMPT, last))]:
        static = [layer.keys for layer in layers if isinstance(mine, StaticCache)]
        got, want = optimized(ids[:, first:end], mine), model(ids[:, first:end], own)
        assert type(got) is type(want)
        torch.testing.assert_close(got.logits, want.logits)
        assert got.past_key_values is mine
        assert mine.layers is layers
        if first:
            assert all(a is b.keys for a, b in zip(static, layers, strict=False))
        check_state(mine, own)


def test_a_dynamic_cache_is_captured_once_for_all_lengths(group: None) -> None:
    model = Decoder("Llama")
    optimized = optimize_allreduce(model)
    decode(model, optimized, DynamicCache, LAST)
    decode(model, optimized, DynamicCache, LAST + 2)
    assert len(optimized.prepared) == 2, "a prompt, one token"
    assert {str(p.report.verdict) for p in optimized.prepared} == {"EQUIVALENT"}
    made = optimized(torch.ones(1, 3, dtype=torch.int64)).past_key_values
    assert type(made) is DynamicCache
    check_state(made, model(torch.ones(1, 3, dtype=torch.int64)).past_key_values)


@pytest.mark.parametrize("static", [False, True])
def test_windows_are_captured_within_and_beyond(group: None, static: bool) -> None:
    model = Decoder("Gemma-3")

    def make() -> Any:
        if static:
            return StaticCache(config=model.config, max_cache_len=16)
        return DynamicCache(config=model.config)

    optimized = optimize_allreduce(model)
    decode(model, optimized, make, LAST)
    assert len(optimized.prepared) == 3, "a prompt, a token within the window, a token beyond"
    assert PROMPT < WINDOW < LAST


class Recurrent(nn.Module):
    """A linear attention: a convolution over tokens, and a state of fixed size."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 4), requires_grad=False)
        self.mix = Summing(nn.Linear(6, 6))

    def forward(self, x: Tensor, cache: Any) -> tuple[Tensor, Any]:
        past = cache.get_recurrent_state(0)
        full = cache.update_conv_state(x, 0, conv_kernel_size=4)
        y = self.mix(full[..., -4:].mul(self.weight).sum(-1))
        cache.update_recurrent_state(y if past is None else past * 0.5 + y, 0)
        return y, cache


def test_a_linear_attention_cache_is_captured_once(group: None) -> None:
    model = Recurrent()
    optimized = optimize_allreduce(model)
    mine, own = (Cache(layers=[LinearAttentionLayer()]) for _ in range(2))
    for step, tokens in enumerate((5, 1, 1, 1)):
        x = torch.linspace(-1, 1, 2 * 6 * tokens).reshape(2, 6, tokens) + step
        got, want = optimized(x, mine), model(x, own)
        torch.testing.assert_close(got[0], want[0])
        assert got[1] is mine
        check_state(mine, own)
    assert len(optimized.prepared) == 2


def test_a_cache_in_a_list_and_a_dict_is_one_cache(group: None) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent = Recurrent()

        def forward(self, x: Tensor, caches: list[Any], named: dict[str, Any]) -> Any:
            assert caches[0] is named["cache"]
            return self.recurrent(x, caches[0])[0] + self.recurrent(x, named["cache"])[0]

    model = Both()
    optimized = optimize_allreduce(model)
    mine, own = (Cache(layers=[LinearAttentionLayer()]) for _ in range(2))
    x = torch.linspace(-1, 1, 36).reshape(2, 6, 3)
    got, want = (f(x, [c], {"cache": c}) for f, c in ((optimized, mine), (model, own)))
    torch.testing.assert_close(got, want)
    check_state(mine, own)


def test_caches_differ_between_ranks_although_they_are_equal(group: None) -> None:
    layer = StaticLayer(max_cache_len=4)
    layer.lazy_initialization(zeros := torch.zeros(2, 1, 1, 6), zeros)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = Summing(nn.Linear(6, 6))

        def forward(self, x: Tensor, cache: Any) -> Any:
            return cache.update(self.mix(x), x, 0)

    optimized = optimize_allreduce(Model())
    prepared = optimized.prepare_call(torch.ones(2, 1, 3, 6), Cache(layers=[layer]))
    placed = {name: str(*p) for name, p in prepared.captured.graph.inputs.items()}
    of_layer = "cache_layers_0"
    assert placed[f"{of_layer}_keys"] == placed[f"{of_layer}_values"] == "V"
    assert placed[f"{of_layer}_cumulative_length"] == placed["x"] == "R"


class OwnHeads(nn.Module):
    """An attention over a window, with one head per rank; its output is summed over the ranks."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__()
        seeded = torch.Generator().manual_seed(group.rank())
        self.weight = nn.Parameter(torch.randn(6, 6, generator=seeded), requires_grad=False)
        self.group = group

    def forward(self, x: Tensor, cache: Any) -> Any:
        y = x @ self.weight
        keys, values = cache.update(y.unsqueeze(1), y.unsqueeze(1), 0)
        mixed = (y @ keys[:, 0].mT).softmax(-1) @ values[:, 0]
        total = funcol.all_reduce(mixed @ self.weight.T, "sum", self.group)
        again = funcol.all_reduce(y @ self.weight.T, "sum", self.group)
        return x + total + again, cache.layers[0].cumulative_length


def own_heads(group: dist.ProcessGroup) -> tuple[int, float, list[int]]:
    model = OwnHeads(group)
    optimized = optimize_allreduce(model, group=group)
    mine, own = (Cache(layers=[DynamicSlidingWindowLayer(WINDOW)]) for _ in range(2))
    gaps, counts = [], []
    with torch.no_grad():
        for step, tokens in enumerate((2, 1, 1, 1, 1)):
            x = torch.linspace(-1, 1, 6 * tokens).reshape(1, tokens, 6) + step
            (got, count), (want, _) = optimized(x, mine), model(x, own)
            counts.append(count)
            gaps.append(float((got - want).abs().max() / want.abs().max()))
            check_state(mine, own)
    return len(optimized.prepared), max(gaps), counts


def test_ranks_with_heads_of_their_own(gloo_pool: Any) -> None:
    for graphs, gap, counts in gloo_pool(2).run(own_heads):
        assert graphs <= 4
        assert gap < 1e-5
        assert counts == [2, 3, 4, 5, 6]
