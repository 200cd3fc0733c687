"""Models that transformers shards, compiled by the backend; rank 0 prints what became of them.

torchrun --nproc-per-node 2 -m tests.compiler.backend.generated FOLDER
"""

import json
import sys

import torch
import torch.distributed as dist
import transformers

import compiler

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8,
    "max_position_embeddings": 64, "tie_word_embeddings": False,
}  # fmt: skip
ROUTED = {
    "n_routed_experts": 4, "first_k_dense_replace": 1, "moe_intermediate_size": 32,
    "num_experts_per_tok": 2,
}  # fmt: skip
MODELS: dict[str, dict[str, int]] = {"Llama": {}, "Glm4Moe": ROUTED}


def compiled(path: str) -> tuple[int, int, str, str]:
    """What became of the model saved at ``path``."""
    torch._dynamo.reset()
    compiler.reset_reports()
    load = transformers.AutoModelForCausalLM.from_pretrained
    model = load(path, tp_plan="auto").eval()
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        expected = model(ids).logits
        run = torch.compile(model, backend="commplan", options={"inner": "eager"})
        torch.testing.assert_close(run(ids).logits, expected, atol=1e-4, rtol=1e-4)
    (report,) = compiler.reports()
    counts = report.before.all_reduces, report.after.all_reduces
    return *counts, str(report.verdict), report.reason


def main(folder: str) -> None:
    dist.init_process_group("gloo")
    for name, options in MODELS.items():
        path = f"{folder}/{name}"
        if dist.get_rank() == 0:
            torch.manual_seed(0)
            config = getattr(transformers, f"{name}Config")(**SMALL, **options)
            getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(path)
        dist.barrier()
        found = compiled(path)
        if dist.get_rank() == 0:
            print(json.dumps({name: found}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
