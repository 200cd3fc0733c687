import torch

from models.step3p5 import Step3p5Config, Step3p5ForCausalLM
from models.step3p5.layers import GemmaRMSNorm

CONFIG = Step3p5Config.small()


def test_norm_is_zero_centred_and_rounds_once():
    norm = GemmaRMSNorm(64, 1e-5, dtype=torch.bfloat16).requires_grad_(False)
    norm.weight.copy_(torch.randn(64, generator=torch.manual_seed(0)) * 0.1)
    x = torch.randn(5, 64, generator=torch.manual_seed(1)).bfloat16()
    wide = x.double()
    exact = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * (1 + norm.weight.double())
    assert norm(x).dtype is torch.bfloat16
    torch.testing.assert_close(norm(x).double(), exact, rtol=2**-8, atol=0)


def test_router_is_float32_and_its_bias_only_selects():
    model = Step3p5ForCausalLM(CONFIG, dtype=torch.bfloat16)
    moe = model.model.layers[2].moe
    assert moe.gate.weight.dtype is moe.router_bias.dtype is torch.float32
    x = torch.randn(9, CONFIG.hidden_size, generator=torch.manual_seed(2)).bfloat16()
    scores = torch.sigmoid(x.float() @ moe.gate.weight.T)
    bias = torch.zeros_like(moe.router_bias)
    bias[7] = 10.0  # the worst expert would be chosen, but weighs what its score says
    moe.router_bias.copy_(bias)
    ids, weights = moe.route(x)
    assert (ids == 7).any(-1).all()
    chosen = scores.gather(-1, ids)
    torch.testing.assert_close(weights, 3.0 * chosen / chosen.sum(-1, keepdim=True))


def test_router_survives_scores_of_zero():
    moe = Step3p5ForCausalLM(CONFIG).model.layers[2].moe
    moe.gate.weight.fill_(-1e4)
    _, weights = moe.route(torch.ones(3, CONFIG.hidden_size))
    assert torch.equal(weights, torch.zeros_like(weights))


def test_scaling_factor_leaves_the_shared_expert_alone():
    x = torch.randn(9, CONFIG.hidden_size, generator=torch.manual_seed(3))
    layer = Step3p5ForCausalLM(CONFIG).model.layers[2]
    scaled = Step3p5ForCausalLM(Step3p5Config.small(moe_router_scaling_factor=6.0)).model.layers[2]
    torch.testing.assert_close(scaled.moe(x), 2 * layer.moe(x))
    assert torch.equal(scaled.share_expert(x), layer.share_expert(x))
