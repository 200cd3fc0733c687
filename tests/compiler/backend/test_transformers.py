"""Models that transformers shards by ``tp_plan="auto"``, as they are."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

import compiler

pytest.importorskip("transformers.distributed.tensor_parallel")

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8,
    "max_position_embeddings": 64, "tie_word_embeddings": False,
}  # fmt: skip
ROUTED = {
    "n_routed_experts": 4, "first_k_dense_replace": 1, "moe_intermediate_size": 32,
    "num_experts_per_tok": 2,
}  # fmt: skip


def generated(group: dist.ProcessGroup, path: str) -> Any:
    from transformers import AutoModelForCausalLM

    torch._dynamo.reset()
    compiler.reset_reports()
    mesh = DeviceMesh.from_group(group, "cpu", mesh_dim_names=("tp",))
    with patch.dict("os.environ", {"LOCAL_RANK": str(group.rank())}):
        model = AutoModelForCausalLM.from_pretrained(path, tp_plan="auto", device_mesh=mesh).eval()
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        expected = model(ids).logits
        run = torch.compile(model, backend="commplan", options={"inner": "eager"})
        torch.testing.assert_close(run(ids).logits, expected, atol=1e-4, rtol=1e-4)
    (report,) = compiler.reports()
    counts = report.before.all_reduces, report.after.all_reduces
    return *counts, str(report.verdict), report.reason


@pytest.mark.parametrize(
    ("name", "options", "counts"),
    [("Llama", {}, (5, 5)), ("Glm4Moe", ROUTED, (6, 5))],
)
def test_sharded_by_transformers(
    gloo_pool: Any, tmp_path: Path, name: str, options: dict[str, int], counts: tuple[int, int]
) -> None:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SMALL, **options)
    getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(tmp_path)
    assert gloo_pool(2).run(generated, str(tmp_path)) == [(*counts, "EQUIVALENT", "")] * 2
