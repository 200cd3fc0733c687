"""Which objects are caches, and which of their numbers count tokens."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from compiler.capture.call_form import CallForm, check_leaf
from compiler.capture.hf_caches import carrier, counters, is_cache_class
from compiler.capture.pytrees import Alias, Structure, rebuilt
from compiler.errors import CaptureError


class Model(torch.nn.Module):
    def forward(self, ids: torch.Tensor, cache: Any = None, **more: Any) -> torch.Tensor:
        return ids


FORM = CallForm.of(Model())
IDS = torch.ones(1, 2, dtype=torch.int64)


def test_without_transformers_nothing_is_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cache:
        pass

    monkeypatch.delitem(sys.modules, "transformers.cache_utils", raising=False)
    assert not is_cache_class(Cache)
    (leaf,) = FORM.flatten((Cache(),), {}).leaves
    with pytest.raises(CaptureError, match="must be a tensor or a plain constant"):
        check_leaf("argument 'ids'", leaf)


def test_a_carrier_is_the_same_for_the_same_count() -> None:
    with torch.inference_mode():
        assert carrier(5, None) is carrier(5, None)
    assert carrier(7, None).shape == (7, 0)
    assert not carrier(5, None).is_inference()
    assert carrier(5, torch.device("meta")).is_meta


cache_utils = pytest.importorskip("transformers.cache_utils")


def sliding(tokens: int) -> Any:
    layers = [cache_utils.DynamicSlidingWindowLayer(sliding_window=4) for _ in range(2)]
    cache = cache_utils.Cache(layers=layers)
    for i in range(2):
        cache.update(torch.ones(1, 1, tokens, 2), torch.ones(1, 1, tokens, 2), i)
    return cache


def test_ints_that_count_tokens() -> None:
    assert "cumulative_length" in counters(cache_utils.DynamicSlidingWindowLayer)
    assert "cumulative_length_int" in counters(cache_utils.StaticSlidingWindowLayer)
    assert not {"sliding_window", "max_cache_len"} & counters(cache_utils.StaticSlidingWindowLayer)


def test_attributes_are_leaves_and_counts_are_sizes() -> None:
    cache = sliding(6)
    given = FORM.flatten((IDS, cache), {})
    named = dict(zip(FORM.names(given), given.leaves, strict=True))
    first, second = (f"cache_layers_{i}" for i in range(2))
    assert named[f"{first}_keys"] is cache.layers[0].keys
    assert named[f"{first}_sliding_window"] == 4
    assert named[f"{first}_cumulative_length"].shape == (6, 0)
    at = list(named).index(f"{first}_cumulative_length")
    assert named[f"{second}_cumulative_length"] == Alias("leaf", at)
    assert at in given.cached
    assert 0 not in given.cached
    assert not given.lacks_tokens
    assert FORM.flatten((IDS[:, :0], cache), {}).lacks_tokens
    assert given.spec == FORM.flatten((IDS, sliding(5)), {}).spec
    assert given.objects[1] is cache


def test_a_cache_is_put_together_again() -> None:
    given = FORM.flatten((IDS, old := sliding(6)), {})
    (_, kwargs) = rebuilt(given.spec, given.leaves, [])
    new = kwargs["cache"]
    assert new is not old
    assert type(new) is type(old)
    assert [list(vars(x)) for x in new.layers] == [list(vars(x)) for x in old.layers]
    assert [x.cumulative_length for x in new.layers] == [6, 6]
    assert new.layers[1].values is old.layers[1].values


def test_caches_are_not_registered_with_pytree() -> None:
    FORM.flatten((IDS, sliding(2)), {})
    leaves, _ = torch.utils._pytree.tree_flatten(cache := sliding(2))
    assert leaves == [cache]


def test_layers_that_share_a_tensor() -> None:
    cache = sliding(2)
    cache.layers[1].keys = cache.layers[0].keys
    given = FORM.flatten((IDS, cache), {})
    assert given.spec == FORM.flatten((IDS, sliding(2)), {}).spec
    assert [x for x in given.leaves if isinstance(x, Alias)] != [
        x for x in FORM.flatten((IDS, sliding(2)), {}).leaves if isinstance(x, Alias)
    ]
    _, kwargs = rebuilt(Structure(given.spec.nodes), given.leaves, [])
    assert kwargs["cache"].layers[0].keys is kwargs["cache"].layers[1].keys


def test_what_is_no_state_is_refused() -> None:
    cache = sliding(2)
    cache.stream = object()
    given = FORM.flatten((IDS, cache), {})
    named = dict(zip(FORM.names(given), given.leaves, strict=True))
    with pytest.raises(CaptureError) as caught:
        check_leaf("argument 'cache_stream'", named["cache_stream"])
    assert caught.value.what == "argument 'cache_stream' must be a tensor or a plain constant"
