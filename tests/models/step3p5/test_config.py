import dataclasses
import json

import pytest

from models.step3p5 import ConfigError, Step3p5Config
from models.step3p5.layer_config import FULL, SLIDING

SMALL = Step3p5Config.small().to_dict()


def test_real_configuration():
    config = Step3p5Config.real()
    full, sliding, last = config.layers[0], config.layers[1], config.layers[44]
    assert len(config.layers) == config.num_hidden_layers == 45
    assert config.mlp_layer_types == ["dense"] * 3 + ["sparse"] * 42
    assert [layer.attention for layer in config.layers].count(FULL) == 12
    assert (full.num_heads, full.window, full.rope.theta, full.rope.rotary_dims) == (
        64,
        None,
        5e6,
        64,
    )
    assert full.rope.scaling == dataclasses.replace(
        full.rope.scaling, factor=2.0, high_freq_factor=32.0
    )
    assert (sliding.num_heads, sliding.window, sliding.rope.theta) == (96, 512, 1e4)
    assert (sliding.rope.rotary_dims, sliding.rope.scaling) == (128, None)
    limits = [(i, c.routed_limit, c.shared_limit) for i, c in enumerate(config.layers)]
    assert [entry for entry in limits if entry[1] or entry[2]] == [(43, 7, None), (44, 7, 16)]
    assert last.attention == FULL
    assert config.rms_norm_eps == 1e-5


@pytest.mark.parametrize("config", [Step3p5Config.real(), Step3p5Config.small(rms_norm_eps=1e-6)])
def test_to_dict_reads_back(config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert Step3p5Config.from_file(tmp_path) == config
    assert Step3p5Config.from_file(tmp_path / "config.json") == config


def test_small_has_every_branch():
    layers = Step3p5Config.small().layers
    assert {(c.attention, c.mlp) for c in layers} == {
        (attention, mlp) for attention in (FULL, SLIDING) for mlp in ("dense", "sparse")
    }
    assert any(c.routed_limit and c.shared_limit for c in layers)
    assert any(c.shared_limit and c.mlp == "dense" for c in layers)
    assert Step3p5Config.small(num_hidden_layers=2).mlp_layer_types == ["dense"] * 2


REFUSALS = [
    ({"colour": 1}, "unknown key 'colour' = 1 in the configuration"),
    ({"hidden_size": None}, "hidden_size must be an integer of at least 1, not None"),
    ({"hidden_size": 0}, "hidden_size must be an integer of at least 1, not 0"),
    ({"vocab_size": 1.5}, "vocab_size must be an integer of at least 1, not 1.5"),
    ({"moe_top_k": 17}, "moe_top_k = 17 exceeds moe_num_experts = 16"),
    ({"sink": True}, "sink = True; this model implements only False"),
    ({"use_rope_layers": [1]}, "use_rope_layers = [1]; this model implements only []"),
    (
        {"num_nextn_predict_layers": 2, "layer_types": [FULL] * 6},
        "layer_types must be a list of 5 or 7 entries (num_hidden_layers = 5, "
        "num_nextn_predict_layers = 2); found 6",
    ),
    (
        {"swiglu_limits": 7.0},
        "swiglu_limits must be a list of 5 entries (num_hidden_layers = 5, "
        "num_nextn_predict_layers = 0); found 7.0",
    ),
    (
        {"layer_types": ["full_attention"] * 4 + ["linear"]},
        "layer_types[4] is 'linear', neither full_attention nor sliding_attention",
    ),
    (
        {"moe_layers_enum": "3,5"},
        "moe_layers_enum names layer 5; num_hidden_layers = 5 allows 0..4",
    ),
    (
        {"moe_layers_enum": "3,x"},
        "moe_layers_enum must be layer numbers joined by commas, not '3,x'",
    ),
    (
        {"num_attention_heads": 10},
        "num_attention_heads = 10 is not divisible by num_attention_groups = 4",
    ),
    (
        {"attention_other_setting": {"num_attention_heads": 10}},
        "attention_other_setting.num_attention_heads = 10 is not divisible by "
        "num_attention_groups = 4",
    ),
    (
        {"attention_other_setting": {"num_attention_heads": 16, "head_dim": 8}},
        "attention_other_setting.head_dim = 8; expected 16",
    ),
    (
        {"attention_other_setting": {}},
        "attention_other_setting.num_attention_heads must be a positive integer, not None",
    ),
    (
        {"partial_rotary_factors": [0.5, 1.0, 1.0, 1.0, 0.45]},
        "partial_rotary_factors[4] = 0.45 of head_dim = 16 is not a positive even number of "
        "dimensions",
    ),
    (
        {"rope_scaling": {"rope_type": "yarn"}},
        "rope_scaling.rope_type = 'yarn'; this model implements only 'llama3'",
    ),
    (
        {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}},
        "key 'rope_scaling.original_max_position_embeddings' is missing",
    ),
    (
        {"rope_scaling": dict(SMALL["rope_scaling"], low_freq_factor=32.0)},
        "rope_scaling.low_freq_factor = 32.0 must be positive and below high_freq_factor = 32.0",
    ),
]


@pytest.mark.parametrize(("keys", "message"), REFUSALS, ids=[m[:40] for _, m in REFUSALS])
def test_refusals_name_key_and_values(keys, message):
    with pytest.raises(ConfigError) as error:
        Step3p5Config.from_dict(SMALL | keys)
    assert str(error.value).startswith(message)


def test_missing_key_is_named():
    keys = {k: v for k, v in SMALL.items() if k != "moe_top_k"}
    with pytest.raises(ConfigError, match="key 'moe_top_k' is missing from the configuration"):
        Step3p5Config.from_dict(keys)


def test_unreadable_files(tmp_path):
    with pytest.raises(ConfigError, match="no configuration file at"):
        Step3p5Config.from_file(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json is not JSON"):
        Step3p5Config.from_file(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"config\.json holds list, not an object"):
        Step3p5Config.from_file(tmp_path)
