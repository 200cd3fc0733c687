import re

import pytest
import torch
import torch.distributed as dist

from models.step3p5 import Step3p5Config, Step3p5ForCausalLM
from models.step3p5.model import SHARD_DIMS

CONFIG = Step3p5Config.small()
LENGTH = 3 * CONFIG.sliding_window


@pytest.fixture(scope="module")
def model():
    return Step3p5ForCausalLM(CONFIG)


@pytest.fixture(scope="module")
def example():
    ids = torch.randint(0, CONFIG.vocab_size, (2, LENGTH), generator=torch.manual_seed(1))
    return ids, torch.arange(LENGTH).expand(2, LENGTH)


@pytest.mark.parametrize("chunks", [[LENGTH], [1] * LENGTH, [9, 1, 1, 6, 7]], ids=str)
def test_cached_steps_equal_one_prefill(model, example, chunks):
    ids, positions = example
    cache = model.make_cache(2, LENGTH + 5)
    for keys, values in cache:  # what no token has written must not matter
        keys.fill_(1e4)
        values.fill_(1e4)
    parts = [
        model(i, p, cache)
        for i, p in zip(ids.split(chunks, 1), positions.split(chunks, 1), strict=True)
    ]
    torch.testing.assert_close(torch.cat(parts, 1), model(ids, positions), rtol=0, atol=5e-5)


def test_sequences_decode_at_their_own_positions(model, example):
    ids, positions = example
    cache = model.make_cache(2, LENGTH)
    model(ids, positions, cache)
    at = torch.tensor([[11], [20]])
    found = model(ids.gather(1, at), at, cache)[:, 0]
    expected = model(ids, positions)
    torch.testing.assert_close(found[0], expected[0, 11], rtol=0, atol=5e-5)
    torch.testing.assert_close(found[1], expected[1, 20], rtol=0, atol=5e-5)


def test_logits_to_keep(model, example):
    expected = model(*example)[:, -2:]
    assert torch.equal(model(*example, logits_to_keep=2), expected)


@pytest.mark.parametrize("changed", range(LENGTH - CONFIG.sliding_window - 1, LENGTH))
def test_a_sliding_layer_reaches_back_one_window(model, changed):
    # The last query of one sliding layer sees exactly the last `window` tokens.
    attention = model.model.layers[1].self_attn
    positions = torch.arange(LENGTH)[None]
    x = torch.randn(LENGTH, CONFIG.hidden_size, generator=torch.manual_seed(2))
    other = x.clone()
    other[changed] += 1.0
    step = model.model._step(positions, x.dtype, None)
    same = torch.equal(attention(x, step, None)[-1], attention(other, step, None)[-1])
    assert same == (changed < LENGTH - CONFIG.sliding_window)


def test_parameters_are_the_same_model_for_every_seed_and_no_other():
    one, same, other = (Step3p5ForCausalLM(CONFIG, seed=seed) for seed in (1, 1, 2))
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, same.get_parameter(name))
        assert not torch.equal(parameter, other.get_parameter(name))
        assert not parameter.requires_grad


def test_real_parameter_count():
    config = Step3p5Config.real()
    model = Step3p5ForCausalLM(config, device="meta", dtype=torch.bfloat16)
    router_biases = config.moe_num_experts * config.mlp_layer_types.count("sparse")
    assert sum(p.numel() for p in model.parameters()) == 196_956_118_272 + router_biases


def plan_and_shapes(group, experts):
    model = Step3p5ForCausalLM(CONFIG, group=group, experts=experts, device="meta")
    rows = {n: (tuple(p.shape), model.shard(n)) for n, p in model.named_parameters()}
    return model.tp_plan, rows


@pytest.mark.parametrize("experts", ["tp", "ep"])
def test_plan_states_how_every_parameter_is_cut(gloo_pool, experts):
    full = {n: tuple(p.shape) for n, p in Step3p5ForCausalLM(CONFIG).named_parameters()}
    ranks = gloo_pool(8).run(plan_and_shapes, experts)
    plan = ranks[0][0]
    assert set(plan.values()) <= SHARD_DIMS.keys()
    assert ("grouped_gemm" in plan.values()) == (experts == "ep")
    for name in full:
        shape, shard = ranks[5][1][name]
        if shard is None:
            assert shape == full[name]
            continue
        kept_whole = name.endswith(("k_proj.weight", "v_proj.weight"))
        assert (shard.index, shard.count) == ((2, 4) if kept_whole else (5, 8))
        expected = list(full[name])
        expected[shard.dim] //= shard.count
        assert shape == tuple(expected)
    assert plan.keys() <= {re.sub(r"layers\.\d+", "layers.*", name) for name in full}
    replicated = {n.split(".")[-2] for n in full if ranks[0][1][n][1] is None}
    norms = {"input_layernorm", "post_attention_layernorm", "q_norm", "k_norm", "norm"}
    assert replicated == norms | {"gate", "moe"}


def test_state_dict_has_the_names_of_the_checkpoint(model):
    names = set(model.state_dict())
    layer = "model.layers.3."
    attention = ["q_proj", "k_proj", "v_proj", "g_proj", "o_proj", "q_norm", "k_norm"]
    projections = ["gate_proj.weight", "up_proj.weight", "down_proj.weight"]
    expected = {
        *(f"self_attn.{name}.weight" for name in attention),
        "input_layernorm.weight",
        "post_attention_layernorm.weight",
        "moe.gate.weight",
        "moe.router_bias",
        *(f"{block}.{name}" for block in ("moe", "share_expert") for name in projections),
    }
    assert {n.removeprefix(layer) for n in names if n.startswith(layer)} == expected
    assert {n for n in names if ".layers." not in n} == {
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
    }
    assert {f"model.layers.0.mlp.{name}" for name in projections} <= names


def bf16_errors(device):
    """Relative error of bfloat16 against float64, by layer and token; all layers on one input."""
    exact = Step3p5ForCausalLM(CONFIG, dtype=torch.float64, device=device)
    model = Step3p5ForCausalLM(CONFIG, dtype=torch.bfloat16, device=device)
    for ours, theirs in zip(model.parameters(), exact.parameters(), strict=True):
        theirs.copy_(ours)
    positions = torch.arange(LENGTH, device=device)[None]
    errors = []
    for layer, oracle in zip(model.model.layers, exact.model.layers, strict=True):
        x = torch.randn(LENGTH, CONFIG.hidden_size, generator=torch.manual_seed(4)).bfloat16()
        x = x.to(device)
        found = layer(x, model.model._step(positions, x.dtype, None), None)
        step = exact.model._step(positions, torch.float64, None)
        expected = oracle(x.double(), step, None)
        errors.append((found - expected).norm(dim=-1) / expected.norm(dim=-1))
    return torch.stack(errors)


def check_bf16_errors(errors):
    # In sparse layers a token near a tie of the router may go to another expert; few do.
    assert (errors < 0.02).double().mean(-1).min() > 0.9
    dense = [index for index, mlp in enumerate(CONFIG.mlp_layer_types) if mlp == "dense"]
    assert errors[dense].max() < 0.02


def test_bf16_layers_against_float64():
    check_bf16_errors(bf16_errors("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_bf16_layers_on_cuda_against_float64():
    check_bf16_errors(bf16_errors("cuda"))


def test_fake_group_needs_no_peers():
    dist.init_process_group("fake", rank=3, world_size=8)
    try:
        model = Step3p5ForCausalLM(CONFIG, group=dist.group.WORLD, device="meta")
        assert model.ranks.rank == 3
        assert model.shard("lm_head.weight").index == 3
    finally:
        dist.destroy_process_group()
