"""Routers of Step-3.5 that choose as a test needs it."""

import torch

from models.step3p5 import Step3p5ForCausalLM


def skewed(model: Step3p5ForCausalLM) -> None:
    """All tokens prefer the first rank's experts, and none ever chooses the last's."""
    experts = model.config.moe_num_experts
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("router_bias"):
                parameter.copy_(torch.linspace(4, -4, experts))


def fixed(model: Step3p5ForCausalLM) -> None:
    """All tokens choose the same experts, spread over all ranks, however scores are rounded."""
    experts, chosen = model.config.moe_num_experts, model.config.moe_top_k
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("router_bias"):
                parameter.fill_(-4)[:: experts // chosen] = 4
