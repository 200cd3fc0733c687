"""Models of transformers by their type, sharded by their plan, without weights."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from compiler.analysis.statistics import statistics
from compiler.capture import capture_ranks
from compiler.capture.hf_models import load, model_class, small_config
from compiler.errors import CaptureError
from compiler.linter import findings


def captured(model_type: str, **options: Any) -> Any:
    calls: list[Any] = []

    def model() -> Any:
        module, args = load(model_type, **options)
        calls.append((args, {}))
        return module

    return capture_ranks(model, lambda: calls[-1], 2, capture="record")


def test_a_decoder_is_captured_as_its_plan_shards_it() -> None:
    capture = captured("llama", layers=1)
    assert statistics(capture.graph.graph).counts == {"all_reduce": 3, "all_gather": 1}
    assert not findings(capture.graph, capture.mutations)


@pytest.mark.parametrize(
    ("model_type", "why"),
    [("llamma", "has no model type 'llamma'"), ("bert", "no tensor-parallel plan for 'bert'")],
)
def test_what_cannot_be_built_is_refused(model_type: str, why: str) -> None:
    with pytest.raises(CaptureError, match=why):
        captured(model_type)


def test_a_small_configuration_shows_every_kind_of_layer() -> None:
    config = small_config(transformers, "deepseek_v3", 0, 8)
    assert config.num_hidden_layers == config.first_k_dense_replace + 1
    config = small_config(transformers, "gemma3_text", 0, 8)
    assert set(config.layer_types) == {"sliding_attention", "full_attention"}
    assert len(config.layer_types) == config.num_hidden_layers == 6


def test_heads_are_as_many_as_ranks_can_share() -> None:
    own, config = transformers.GemmaConfig(), small_config(transformers, "gemma3_text", 2, 8)
    assert config.num_key_value_heads % 8 == config.num_attention_heads % 8 == 0
    default = transformers.Gemma3TextConfig()
    ratio = default.num_attention_heads // default.num_key_value_heads
    assert config.num_attention_heads == ratio * config.num_key_value_heads
    assert small_config(transformers, "gemma", 2, 1).num_attention_heads == own.num_attention_heads


def test_a_type_without_a_head_has_a_model_of_its_own() -> None:
    config = transformers.CONFIG_MAPPING["qwen2_5_vl_text"]
    assert model_class(transformers, config).__name__ == "Qwen2_5_VLTextModel"
