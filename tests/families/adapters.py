"""LoRA by peft on a model that transformers has sharded."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


def with_lora(model: Any, experts: bool) -> Any:
    """The model with an adapter of rank 4 on its column- and row-parallel layers.

    With routed ``experts``, on those of attention alone: peft takes the names of an MLP's layers
    for those of experts too, whose sharded parameters it then cannot wrap.

    peft shards B of the former and A of the latter like the layer itself, by transformers' styles.
    Weights are drawn, the same on all ranks: the initial B is zero, which would hide mistakes.
    """
    config = LoraConfig(
        r=4, target_modules=[*ATTENTION, *(() if experts else MLP)], init_lora_weights=False
    )
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return get_peft_model(model, config).eval()
