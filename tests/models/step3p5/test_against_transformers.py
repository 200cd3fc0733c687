"""The model against the independent implementation in transformers, layer by layer."""

import pytest
import torch

from models.step3p5 import Step3p5Config, Step3p5ForCausalLM

pytest.importorskip("transformers.models.step3p7")
from transformers.models.step3p7.configuration_step3p7 import Step3p7TextConfig
from transformers.models.step3p7.modeling_step3p7 import Step3p7TextModel

RENAMED = {
    ".moe.gate.weight": ".mlp.gate.weight",
    ".moe.router_bias": ".mlp.gate.e_score_correction_bias",
    ".moe.down_proj.weight": ".mlp.experts.down_proj",
    ".share_expert.": ".mlp.shared_experts.",
}


def reference_state(model):
    """The model's tensors under the names, and in the fused form, of transformers."""
    state = model.model.state_dict()
    renamed = {}
    for name, tensor in state.items():
        if name.endswith("moe.up_proj.weight"):
            continue
        if name.endswith("moe.gate_proj.weight"):
            up = state[name.replace("gate_proj", "up_proj")]
            name = name.replace("moe.gate_proj.weight", "mlp.experts.gate_up_proj")
            tensor = torch.cat([tensor, up], dim=1)
        for ours, theirs in RENAMED.items():
            name = name.replace(ours, theirs)
        renamed[name] = tensor
    return renamed


@pytest.fixture(scope="module")
def pair():
    config = Step3p5Config.small(num_hidden_layers=6)
    reference = Step3p7TextModel(
        Step3p7TextConfig(**config.to_dict(), attn_implementation="eager")
    ).eval()
    model = Step3p5ForCausalLM(config, seed=3)
    reference.load_state_dict(reference_state(model), strict=True)
    return model, reference


@pytest.fixture(scope="module")
def recorded(pair):
    """Outputs of every layer, and choices of every router, of both on the same 64 tokens."""
    layers, routers = ([], []), ([], [])
    model, reference = pair
    hooks = []
    for side, network in enumerate((model.model, reference)):
        for layer in network.layers:
            hooks.append(layer.register_forward_hook(lambda m, i, o, s=side: layers[s].append(o)))
    for layer in reference.layers:
        if hasattr(layer.mlp, "gate"):
            hooks.append(
                layer.mlp.gate.register_forward_hook(lambda m, i, o: routers[1].append(o[1:]))
            )
    for layer in model.model.layers:
        if layer.is_sparse:
            hooks.append(
                layer.moe.register_forward_hook(lambda m, i, o: routers[0].append(m.route(*i)))
            )
    ids = torch.randint(0, model.config.vocab_size, (2, 32), generator=torch.manual_seed(5))
    positions = torch.arange(32).expand(2, 32)
    with torch.no_grad():
        final = model.model(ids, positions)
        expected = reference(input_ids=ids, position_ids=positions).last_hidden_state
    for hook in hooks:
        hook.remove()
    return layers, routers, final, expected


def relative_error(found, expected):
    """Largest difference in units of the root mean square."""
    return (
        (found - expected.reshape(found.shape)).abs().max() / expected.square().mean().sqrt()
    ).item()


def test_every_layer_agrees(recorded):
    (ours, theirs), _, final, expected = recorded
    assert len(ours) == len(theirs) == 6
    errors = [relative_error(a, b) for a, b in zip(ours, theirs, strict=True)]
    assert max(errors) <= 5e-5, errors
    assert relative_error(final, expected) <= 5e-5


def test_routers_choose_the_same_experts(recorded, pair):
    _, (ours, theirs), _, _ = recorded
    scaling = pair[0].config.moe_router_scaling_factor
    assert len(ours) == len(theirs) == 4
    for (ids, weights), (their_weights, their_ids) in zip(ours, theirs, strict=True):
        order, their_order = ids.argsort(-1), their_ids.argsort(-1)
        assert torch.equal(ids.gather(-1, order), their_ids.gather(-1, their_order))
        torch.testing.assert_close(
            weights.gather(-1, order), scaling * their_weights.gather(-1, their_order)
        )


def test_clamps_bite_and_bias_selects(pair):
    # The comparison above would hide a clamp or a bias that never acts.
    model, _ = pair
    hidden = torch.randn(64, model.config.hidden_size, generator=torch.manual_seed(6))
    for layer in model.model.layers:
        blocks = [layer.moe, layer.share_expert] if layer.is_sparse else [layer.mlp]
        for block in (b for b in blocks if b.limit is not None):
            limited, limit = block(hidden), block.limit
            block.limit = None
            unlimited = block(hidden)
            block.limit = limit
            assert relative_error(limited, unlimited) > 0.1
        if layer.is_sparse:
            ids, _ = layer.moe.route(hidden)
            bias = layer.moe.router_bias.clone()
            layer.moe.router_bias.zero_()
            assert not torch.equal(layer.moe.route(hidden)[0], ids)
            layer.moe.router_bias.copy_(bias)
