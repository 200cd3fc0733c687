"""Serve a small model with vLLM's engine on two ranks of a CPU, and save what came out.

usage: python -m scripts.vllm_engine MODEL BACKEND SEED FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
}  # fmt: skip
PROMPTS = (5, 17, 33, 64)
"""Lengths; batches of them have numbers of rows that two ranks share evenly, and others."""
NEW_TOKENS = 8

LAYERS = 6
SLIDING = ["full_attention" if i % 4 == 0 else "sliding_attention" for i in range(LAYERS)]
STEP3P5: dict[str, Any] = {
    "architectures": ["Step3p5ForCausalLM"], "model_type": "step3p5", "hidden_size": 256,
    "intermediate_size": 512, "num_attention_heads": 4, "num_attention_groups": 2,
    "num_hidden_layers": LAYERS, "vocab_size": 512, "rms_norm_eps": 1e-5, "head_dim": 64,
    "moe_intermediate_size": 128, "moe_num_experts": 8, "moe_top_k": 2, "share_expert_dim": 128,
    "share_expert_dims": 128, "rope_theta": [10000.0] * LAYERS,
    "partial_rotary_factors": [1.0] * LAYERS, "layer_types": SLIDING,
    "attention_other_setting": {
        "attention_type": "sliding_attention", "num_attention_heads": 4,
        "num_attention_groups": 2, "head_dim": 64, "true_head_dim": 64,
    },
    "sliding_window": 64, "use_head_wise_attn_gate": True, "use_qk_norm": True, "use_moe": True,
    "moe_layers_enum": "2,3,4,5", "moe_router_activation": "softmax",
    "moe_router_scaling_factor": 3.0, "use_moe_router_bias": True, "need_fp32_gate": True,
    "norm_expert_weight": True, "max_position_embeddings": 1024, "max_seq_len": 1024,
    "yarn_only_types": ["full_attention"], "torch_dtype": "bfloat16",
    "swiglu_limits": [0.0] * LAYERS, "swiglu_limits_shared": [0.0] * LAYERS, "bos_token_id": 0,
    "eos_token_id": 1, "num_nextn_predict_layers": 0, "use_rope_layers": [],
    "zero_centered": True, "tie_word_embeddings": False,
}  # fmt: skip
REAL: dict[str, Any] = {
    "hidden_size": 4096, "intermediate_size": 11264, "num_attention_heads": 64,
    "num_attention_groups": 8, "head_dim": 128, "moe_intermediate_size": 1280,
    "share_expert_dim": 1280, "share_expert_dims": 1280,
    "attention_other_setting": {
        "attention_type": "sliding_attention", "num_attention_heads": 64,
        "num_attention_groups": 8, "head_dim": 128, "true_head_dim": 128,
    },
}  # fmt: skip
"""Sizes of matrices in Step-3.5-Flash."""
QWEN3_MOE: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 256,
    "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
    "num_hidden_layers": LAYERS, "vocab_size": 512, "max_position_embeddings": 1024,
    "moe_intermediate_size": 128, "num_experts": 8, "num_experts_per_tok": 2,
    "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
    "torch_dtype": "bfloat16", "tie_word_embeddings": False,
}  # fmt: skip
MODELS = {"step3p5": STEP3P5, "qwen3-moe": QWEN3_MOE}


def main() -> None:
    """Serve one model, and save tokens, log probabilities and reports."""
    name, backend, seed, where = sys.argv[1:]
    os.environ.update(SETTINGS)
    from vllm import LLM, SamplingParams

    folder = Path(where)
    folder.joinpath("config.json").write_text(json.dumps(MODELS[name]))
    llm = LLM(
        model=where, skip_tokenizer_init=True, load_format="dummy", tensor_parallel_size=2,
        dtype="bfloat16", max_model_len=256, max_num_batched_tokens=256, max_num_seqs=8,
        compilation_config={"mode": 2, "backend": backend}, disable_log_stats=True,
        enable_prefix_caching=False, seed=int(seed),
        worker_extension_cls="scripts.vllm_workers.Observer",
        additional_config={"commplan": {"inner": "eager", "policy": "boundary"}},
    )  # fmt: skip
    llm.collective_rpc("observe")
    prompts = [{"prompt_token_ids": [3 + i * 7 % 500 for i in range(n)]} for n in PROMPTS]
    sampling = SamplingParams(
        temperature=0, max_tokens=NEW_TOKENS, detokenize=False, logprobs=1, ignore_eos=True
    )
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
    llm.collective_rpc("save", args=(where,))
    served = [
        {
            "tokens": list(each.outputs[0].token_ids),
            "logprobs": [next(iter(step.values())).logprob for step in each.outputs[0].logprobs],
        }
        for each in outputs
    ]
    plans = llm.collective_rpc("planned")
    folder.joinpath("served.json").write_text(json.dumps({"served": served, "plans": plans}))


if __name__ == "__main__":
    main()
