"""Decoders of transformers, small: their own classes, two layers each, seeded weights.

``Family.full`` builds the unsharded model in memory. ``Family.save`` writes a checkpoint, once;
``Family.load`` reads it as users do: ``from_pretrained(folder, tp_plan="auto")`` on every rank.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from torch import nn
from transformers.distributed import DistributedConfig

ROTARY = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8,
    "max_position_embeddings": 64, "tie_word_embeddings": False, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, **ROTARY,
}  # fmt: skip
ROUTED = {"moe_intermediate_size": 32, "num_experts_per_tok": 2}
LATENT = {
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "v_head_dim": 8,
    "qk_nope_head_dim": 8, "num_key_value_heads": 8,
}  # fmt: skip
"""Multi-head latent attention."""


@dataclass(frozen=True)
class Family:
    """One architecture and how it is sharded.

    Attributes:
        config: name of the configuration class.
        model: name of the class with a language model's head.
        options: what is small, or has no default.
        plan: entries added to the class's own plan, or put in its place.
        routed: whether its experts have several implementations in transformers.
        expert_parallel: whole experts per rank, as the class's expert plan says.
        attention: implementation of attention.
    """

    config: str
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, str] = field(default_factory=dict)
    routed: bool = False
    expert_parallel: bool = False
    attention: str = "sdpa"

    def full(self, dtype: torch.dtype, experts: str) -> nn.Module:
        """The unsharded model, the same in every process.

        Args:
            dtype: of the parameters.
            experts: transformers' implementation of routed experts.
        """
        model = self._built()
        if self.routed:
            model.config._experts_implementation = experts
        model.config._attn_implementation = self.attention
        for module in model.modules():
            # Its loop over a chunk is unrolled by torch.export: 64 steps each, unless told less.
            if hasattr(module, "chunk_gated_delta_rule"):
                module.chunk_gated_delta_rule = partial(module.chunk_gated_delta_rule, chunk_size=4)
        return model.to(dtype).eval()

    def _built(self) -> Any:
        """The model in float32, as its configuration makes it."""
        config = getattr(transformers, self.config)(**SMALL | dict(self.options))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model: Any = getattr(transformers, self.model)(config).float()
            for name, parameter in model.named_parameters():
                # The initial biases, sinks and corrections are zero, which would hide mistakes.
                if parameter.dim() == 1 and not name.endswith("norm.weight"):
                    nn.init.normal_(parameter, std=0.1)
        return model

    def save(self, folder: Path) -> None:
        """Write configuration and weights, float32, for ``load``.

        Weights are larger than the initial ones, so that generated tokens depend on all layers.
        """
        transformers.logging.disable_progress_bar()
        model = self._built()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    nn.init.normal_(parameter, std=0.15)
        model.save_pretrained(folder)

    def load(self, folder: Path, dtype: torch.dtype) -> Any:
        """This rank's part of a saved model, sharded by transformers over all ranks.

        Args:
            folder: what ``save`` wrote.
            dtype: of the parameters.
        """
        if self.expert_parallel:
            ranks = dist.get_world_size()
            plan = DistributedConfig(tp_size=ranks, ep_size=ranks, tp_plan=dict(self.plan))
            sharding: dict[str, Any] = {"distributed_config": plan}
        else:
            sharding = {"tp_plan": "auto"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # tp_plan= is to become an entry
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, local_files_only=True, **sharding
            )
        return model.eval()


FAMILIES: Mapping[str, Family] = {
    "Llama": Family("LlamaConfig", "LlamaForCausalLM"),
    "Qwen3": Family("Qwen3Config", "Qwen3ForCausalLM"),
    "Gemma-3": Family(
        "Gemma3TextConfig", "Gemma3ForCausalLM",
        {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"],
         "rope_parameters": None},
    ),
    "Mixtral": Family(
        "MixtralConfig", "MixtralForCausalLM", {"num_local_experts": 8, "num_experts_per_tok": 2},
        routed=True,
    ),
    "Qwen3-MoE": Family(
        "Qwen3MoeConfig", "Qwen3MoeForCausalLM", {"num_experts": 8, **ROUTED}, routed=True
    ),
    "GLM4-MoE": Family(
        "Glm4MoeConfig", "Glm4MoeForCausalLM",
        {"n_routed_experts": 8, "first_k_dense_replace": 1, **ROUTED},
        routed=True,
    ),
    "DeepSeek-V3": Family(
        "DeepseekV3Config", "DeepseekV3ForCausalLM",
        {"n_routed_experts": 8, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1,
         **LATENT, **ROUTED},
        routed=True,
    ),
    "dots1": Family(
        "Dots1Config", "Dots1ForCausalLM",
        {"n_routed_experts": 8, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 2,
         "topk_group": 1, **ROUTED},
        routed=True,
    ),
    "ernie4.5-MoE": Family(
        "Ernie4_5_MoeConfig", "Ernie4_5_MoeForCausalLM",
        {"moe_num_experts": 8, "moe_k": 2, "moe_num_shared_experts": 1,
         "moe_intermediate_size": 32, "moe_layer_start_index": 1},
        routed=True,
    ),
    "DeepSeek-V2": Family(
        "DeepseekV2Config", "DeepseekV2ForCausalLM",
        {"n_routed_experts": 8, "n_shared_experts": 1, "first_k_dense_replace": 1, **LATENT,
         **ROUTED},
        routed=True,
    ),
    "Cohere2": Family(
        "Cohere2Config", "Cohere2ForCausalLM",
        {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "Kimi-Linear": Family(
        "KimiLinearConfig", "KimiLinearForCausalLM",
        {"num_local_experts": 8, **LATENT, "q_lora_rank": None, "linear_head_dim": 8,
         "linear_num_heads": 4, "layer_types": ["linear_attention", "full_attention"],
         "mlp_layer_types": ["dense", "sparse"], **ROUTED},
        routed=True,
    ),
    "Llama4": Family(
        "Llama4TextConfig", "Llama4ForCausalLM",
        {"num_local_experts": 4, "intermediate_size_mlp": 64, "interleave_moe_layer_step": 2},
    ),
    "Qwen3-Next": Family(
        "Qwen3NextConfig", "Qwen3NextForCausalLM",
        {"num_experts": 8, "shared_expert_intermediate_size": 32, "linear_key_head_dim": 8,
         "linear_value_head_dim": 8, "linear_num_key_heads": 4, "linear_num_value_heads": 8,
         "layer_types": ["linear_attention", "full_attention"], **ROUTED},
        routed=True,
    ),
    "gpt-oss": Family(
        "GptOssConfig", "GptOssForCausalLM",
        {"num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": 4},
        plan={
            "model.layers.*.self_attn.q_proj": "colwise",
            "model.layers.*.self_attn.k_proj": "colwise",
            "model.layers.*.self_attn.v_proj": "colwise",
            "model.layers.*.self_attn.o_proj": "rowwise",
            "model.layers.*.self_attn.sinks": "colwise",
            "model.layers.*.self_attn": "local_params",
        },
        routed=True,
        expert_parallel=True,
        attention="eager",
    ),
}  # fmt: skip
