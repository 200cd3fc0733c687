"""Small configs: what repeats is cut, sizes of matrices stay."""

from compiler.engines.vllm.configs import EXPERTS, LAYERS, POSITIONS, WORDS, _small


def test_what_repeats_is_cut_also_in_nested_configs() -> None:
    text = {
        "num_hidden_layers": 40, "layer_types": ["full"] * 40, "num_local_experts": 256,
        "first_k_dense_replace": 3, "vocab_size": 100_000, "hidden_size": 4096, "list": [1, 2],
        "num_attention_heads": 32, "head_dim": None,
    }  # fmt: skip
    small = _small({"text_config": text, "num_experts": 4})
    assert small == {
        "text_config": {
            "num_hidden_layers": LAYERS, "layer_types": ["full"] * LAYERS,
            "num_local_experts": EXPERTS, "first_k_dense_replace": 1, "vocab_size": WORDS,
            "hidden_size": 4096, "list": [1, 2], "num_attention_heads": 32, "head_dim": 128,
            "max_position_embeddings": POSITIONS,
        },
        "num_experts": 4,
    }  # fmt: skip
