import pytest
import torch
from torch.nn.functional import silu

from models.step3p5.experts import Experts, swiglu
from models.step3p5.weights import random_tensor

TOKENS, TOP_K, NUM_EXPERTS, HIDDEN, INNER = 37, 3, 6, 32, 16


def test_swiglu_clamps_after_silu_and_only_above():
    gate = torch.tensor([-3.0, -0.5, 0.2, 1.0, 3.0, 3.0])
    up = torch.tensor([1.0, -0.9, 0.3, 0.9, 0.3, -2.0])
    found = swiglu(gate, up, 0.5)
    expected = torch.tensor([min(silu(g).item(), 0.5) for g in gate])
    expected = expected * torch.tensor([0.5, -0.5, 0.3, 0.5, 0.3, -0.5])
    torch.testing.assert_close(found, expected)
    before = silu(gate.clamp(max=0.5)) * up.clamp(-0.5, 0.5)
    assert (found - before).abs().max() > 0.05  # the wrong order is visible at this limit
    assert torch.equal(swiglu(gate, up, None), silu(gate) * up)


def experts_of(dtype, device="cpu", limit=0.5):
    experts = Experts(NUM_EXPERTS, HIDDEN, INNER, limit, dtype=dtype, device=device)
    for name, parameter in experts.requires_grad_(False).named_parameters():
        parameter.copy_(random_tensor(name, tuple(parameter.shape), seed=0))
    return experts


def example(top=NUM_EXPERTS, tokens=TOKENS):
    generator = torch.manual_seed(0)
    ids = torch.rand(tokens, top, generator=generator).argsort(-1)[:, :TOP_K]
    weights = torch.rand(tokens, TOP_K, generator=generator) + 0.1
    return torch.randn(tokens, HIDDEN, generator=generator), ids, weights


def loop_over_rows(experts, x, ids, weights):
    """Every row on its own, in float64."""
    rows = []
    for row, expert in enumerate(ids.flatten().tolist()):
        gate, up, down = (
            linear.weight[expert].double()
            for linear in (experts.gate_proj, experts.up_proj, experts.down_proj)
        )
        h = x[row // ids.shape[1]].double()
        a, b = silu(gate @ h), up @ h
        rows.append(down @ (a.clamp(max=experts.limit) * b.clamp(-experts.limit, experts.limit)))
    return torch.stack(rows) * weights.to(x.device).double().view(-1, 1)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02)]
)
@pytest.mark.parametrize("unused", [0, 2], ids=["all experts used", "empty experts"])
def test_both_paths_against_a_loop(dtype, tolerance, unused):
    experts = experts_of(dtype)
    x, ids, weights = example(NUM_EXPERTS - unused)
    x = x.to(dtype)
    found = experts.expert_rows(x, ids, weights)
    assert found.dtype is dtype
    torch.testing.assert_close(
        found.double(), loop_over_rows(experts, x, ids, weights), rtol=0, atol=tolerance
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_elsewhere_leave_the_other_rows_alone(dtype):
    experts = experts_of(dtype)
    x, ids, weights = example()
    x = x.to(dtype)
    elsewhere = ids.clone()
    elsewhere[::3, 1] = NUM_EXPERTS
    here = (elsewhere < NUM_EXPERTS).flatten()
    found = experts.expert_rows(x, elsewhere, weights)[here]
    torch.testing.assert_close(found, experts.expert_rows(x, ids, weights)[here])
    nowhere = torch.full_like(ids, NUM_EXPERTS)
    assert experts.expert_rows(x, nowhere, weights).shape == (TOKENS * TOP_K, HIDDEN)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tokens(dtype):
    x, ids, weights = example(tokens=0)
    assert experts_of(dtype).expert_rows(x.to(dtype), ids, weights).shape == (0, HIDDEN)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("elsewhere", [False, True])
def test_grouped_path_on_cuda(elsewhere):
    experts = experts_of(torch.bfloat16, "cuda")
    x, ids, weights = example()
    x = x.bfloat16().cuda()
    expected = loop_over_rows(experts, x, ids, weights).cuda()
    here = torch.ones_like(ids, dtype=torch.bool)
    if elsewhere:
        here[::3, 1] = False
    found = experts.expert_rows(x, torch.where(here, ids, NUM_EXPERTS).cuda(), weights.cuda())
    here = here.flatten()
    torch.testing.assert_close(found[here].double(), expected[here], rtol=0, atol=0.02)
