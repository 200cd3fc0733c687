"""Model classes of vLLM in a made-up world; these tests run where vLLM is installed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

vllm = pytest.importorskip("vllm", reason="scripts/test_vllm has an environment with it")

from compiler.engines.vllm import world  # noqa: E402
from compiler.engines.vllm.capture import capture  # noqa: E402
from compiler.engines.vllm.configs import write_config  # noqa: E402
from compiler.ir.placement import Placement, Replicate, Shard  # noqa: E402
from compiler.linter import findings  # noqa: E402

RANKS = 2
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256,
    "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 1, "vocab_size": 512, "max_position_embeddings": 1024,
    "torch_dtype": "bfloat16", "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    world.prepare_process()
    return


def placements(folder: Path) -> dict[str, Placement]:
    captured = capture(folder, RANKS)
    inputs = captured.graph.inputs
    return {key: inputs[name][0] for name, key in captured.state.items() if name in inputs}


def test_weights_are_what_the_classes_of_their_layers_say(tmp_path: Path) -> None:
    tmp_path.joinpath("config.json").write_text(json.dumps(LLAMA))
    layer, of = "model.layers.0.", placements(tmp_path)
    assert of["model.embed_tokens.weight"] == Shard(0)
    assert of[f"{layer}self_attn.qkv_proj.weight"] == Shard(0)
    assert of[f"{layer}self_attn.o_proj.weight"] == Shard(1)
    assert of[f"{layer}mlp.gate_up_proj.weight"] == Shard(0)
    assert of[f"{layer}mlp.down_proj.weight"] == Shard(1)
    assert of[f"{layer}input_layernorm.weight"] == Replicate()


@pytest.mark.parametrize("mended", [False, True])
def test_experts_that_are_reduced_twice(
    mended: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.model_executor.models import aria

    class Mended(aria.LlamaMLP):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options, reduce_results=not mended)

    monkeypatch.setattr(aria, "LlamaMLP", Mended)
    write_config("AriaForConditionalGeneration", tmp_path, {})
    captured = capture(tmp_path, RANKS)
    rules = {one.rule for one in findings(captured.graph, captured.mutations)}
    assert rules == (set() if mended else {"replicated-term"})
